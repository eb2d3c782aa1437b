"""Overlapping owners in a summary."""

from hypothesis import given
from hypothesis import strategies as st

from whoseblock.fs.base import Answer, FileOwner, Free, MetadataOwner, Outside, Owner
from whoseblock.summary import KINDS, Summary


def piece(kind: str, start: int, length: int) -> Owner:
    if kind in ("file", "unwritten"):
        return FileOwner(start, length, 7, "data", "data", 0, kind == "unwritten", False)  # noqa: FBT003
    if kind == "metadata":
        return MetadataOwner(start, length, "ag")
    return Free(start, length) if kind == "free" else Outside(start, length, "gap")


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["file", "unwritten", "metadata", "free", "outside"]),
            st.integers(0, 30),
            st.integers(1, 20),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_overlapping_owners_count_as_the_most_severe(rows: list[tuple[str, int, int]]) -> None:
    owners = tuple(piece(*row) for row in sorted(rows, key=lambda row: row[1]))
    covered: dict[int, str] = {}
    for kind, start, length in rows:
        for byte in range(start, start + length):
            covered[byte] = min(covered.get(byte, kind), kind, key=KINDS.index)
    summary = Summary(lambda _layer, _inode: None)
    summary.add(Answer(0, len(covered) + 1, True, (), owners))  # noqa: FBT003
    found = {kind: count for kind, count in summary.totals.items() if count}
    truth = {kind: list(covered.values()).count(kind) for kind in set(covered.values())}
    if sum(length for _, _, length in rows) != len(covered) + 1:
        assert found == truth
