"""Names, escaped for a terminal."""

import os

from hypothesis import given
from hypothesis import strategies as st

from whoseblock.printable import printable


@given(st.text() | st.binary().map(os.fsdecode))
def test_no_name_sends_escape_sequences(name: str) -> None:
    shown = printable(name)
    assert shown.isprintable()
    if name.isprintable() and "\\" not in name:
        assert shown == name


@given(st.binary().map(os.fsdecode), st.binary().map(os.fsdecode))
def test_no_two_names_look_alike(one: str, other: str) -> None:
    assert (printable(one) == printable(other)) == (one == other)
