"""Rows, answers and notes of all filesystems."""

from hypothesis import given
from hypothesis import strategies as st

from whoseblock.fs.base import MAX_NOTES, distinct

NOTES = st.lists(st.integers(0, 60).map("note {}".format), max_size=60)


@given(NOTES, NOTES)
def test_notes_cut_off_before_stay_counted(first: list[str], second: list[str]) -> None:
    # Bulk answers cut off the notes of a question before those of the filesystem are added.
    once = distinct(first)
    assert distinct(once) == once
    assert len(once) <= MAX_NOTES + 1
    if not set(first) & set(second):
        assert distinct([*second, *once]) == distinct([*second, *first])


def test_notes_that_look_alike_are_kept() -> None:
    notes = ("and so on", "and x more notes of this kind")
    assert distinct(notes) == notes
