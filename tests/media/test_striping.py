"""The arithmetic of arrays against what must hold of any: both directions, every cell once."""

from collections import Counter

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from whoseblock.errors import UnsupportedError
from whoseblock.media.mapped import MappedMedia
from whoseblock.media.striping import Cell, Raid0, Raid1, Raid5, Raid10, Striping
from whoseblock.stack.base import Layer, descend
from whoseblock.stack.members import MemberReader, MemberSegment, locate_runs

CHUNK = 8


class Bytes:
    """A medium of bytes in memory."""

    def __init__(self, data: bytes) -> None:
        self.name = "memory"
        self.size = len(data)
        self.data = data

    def pread(self, offset: int, length: int) -> bytes:
        assert offset >= 0
        assert offset + length <= self.size
        return self.data[offset : offset + length]

    def close(self) -> None:
        """Close nothing: no file is open."""


def check(striping: Striping, chunks: int, rows: int, copies: int) -> None:
    """Write an array chunk by chunk, and look at every cell of every member."""
    held: dict[Cell, int] = {}
    for number in range(chunks):
        cells = striping.locate_chunk(number)
        assert len(cells) == copies
        # Copies are on different members, or they would be lost together.
        assert len({cell.member for cell in cells}) == copies
        for cell in cells:
            assert cell not in held
            assert 0 <= cell.member < striping.members
            assert 0 <= cell.row < rows
            held[cell] = number
    for member in range(striping.members):
        for row in range(rows):
            cell = Cell(member, row)
            found = striping.identify_cell(cell)
            if cell in held:
                assert found == held[cell]
            else:
                assert isinstance(found, str) or found >= chunks


@given(sizes=st.lists(st.integers(0, 12), min_size=1, max_size=6), global_order=st.booleans())
def test_raid_0_of_any_members(sizes: list[int], global_order: bool) -> None:  # noqa: FBT001
    assume(any(sizes))
    striping = Raid0(CHUNK, sizes, global_order=global_order)
    assert striping.chunks == sum(sizes)
    check(striping, striping.chunks, max(sizes), 1)


@given(
    members=st.integers(2, 7),
    near=st.integers(1, 3),
    far=st.integers(1, 3),
    offset=st.booleans(),
    sets=st.integers(0, 2),
    rows=st.integers(1, 24),
)
def test_raid_10_of_any_layout(  # noqa: PLR0913
    members: int,
    near: int,
    far: int,
    offset: bool,  # noqa: FBT001
    sets: int,
    rows: int,
) -> None:
    assume(near * far <= members)
    # The kernel itself warns of sets in which copies would come to lie on one member.
    size = (members, members // far, near * far)[sets]
    assume(size >= near * far)
    layout = near | far << 8 | offset << 16 | sets << 17
    striping = Raid10(CHUNK, members, layout, rows)
    assume(striping.chunks)
    check(striping, striping.chunks, rows + (far if offset else 0), near * far)


@given(
    members=st.integers(3, 8),
    layout=st.integers(0, 5),
    parities=st.integers(1, 2),
    rows=st.integers(1, 20),
)
def test_raid_5_and_6_of_any_layout(members: int, layout: int, parities: int, rows: int) -> None:
    striping = Raid5(CHUNK, members, layout, parities)
    data = members - parities
    check(striping, rows * data, rows, 1)
    for row in range(rows):
        words = Counter(striping.identify_cell(Cell(member, row)) for member in range(members))
        parity = {word: count for word, count in words.items() if isinstance(word, str)}
        expected = {"parity": 1} if parities == 1 else {"parity (P)": 1, "parity (Q)": 1}
        assert parity == expected


@given(layout=st.integers(-5, 40), parities=st.integers(1, 2))
def test_other_layouts_are_refused(layout: int, parities: int) -> None:
    if 0 <= layout <= 5:
        return
    with pytest.raises(UnsupportedError):
        Raid5(CHUNK, 5, layout, parities)


@st.composite
def arrays(draw: st.DrawFn) -> tuple[Striping, int, int]:
    """Return a striping, the number of its chunks, and the number of rows of its members."""
    members, rows = draw(st.integers(3, 5)), draw(st.integers(2, 8))
    kind = draw(st.sampled_from(["raid0", "raid1", "raid5", "raid6", "near", "far", "offset"]))
    if kind == "raid0":
        return Raid0(CHUNK, [rows] * members), rows * members, rows
    if kind == "raid1":
        return Raid1(members, rows * CHUNK), 1, 1
    if kind in ("raid5", "raid6"):
        parities = 1 if kind == "raid5" else 2
        layout = draw(st.integers(0, 5))
        return Raid5(CHUNK, members, layout, parities), rows * (members - parities), rows
    layout = {"near": 0x102, "far": 0x201, "offset": 0x10201}[kind]
    striping = Raid10(CHUNK, members, layout, rows)
    return striping, striping.chunks, rows + 2


@given(array=arrays(), data=st.data())
def test_written_bytes_are_read_back_and_located(
    array: tuple[Striping, int, int], data: st.DataObject
) -> None:
    """Fill members through `cells`, read through `locate`, and come back through the segments."""
    striping, chunks, rows = array
    size = chunks * striping.chunk
    content = bytes(number % 251 for number in range(size))
    raw = [bytearray(rows * striping.chunk) for _ in range(striping.members)]
    for number in range(chunks):
        for cell in striping.locate_chunk(number):
            start = cell.row * striping.chunk
            chunk = content[number * striping.chunk :][: striping.chunk]
            raw[cell.member][start : start + len(chunk)] = chunk
    shift = data.draw(st.integers(0, 9))
    media = [Bytes(bytes(shift) + bytes(one)) for one in raw]
    members = [MemberReader(medium, shift) for medium in media]
    whole = MappedMedia(
        "array", size, lambda start, length: locate_runs(striping, members, start, length)
    )
    start = data.draw(st.integers(0, size - 1))
    length = data.draw(st.integers(1, size - start))
    assert whole.pread(start, length) == content[start : start + length]
    top = Layer("array", size, "array")
    for number, medium in enumerate(media):
        layer = Layer("member", medium.size, "disk")
        layer.segments = [MemberSegment(shift, medium.size - shift, top, striping, number)]
        covered = shift
        for landing in descend(layer, shift, medium.size - shift):
            assert landing.start == covered
            covered += landing.length
            if landing.layer is top:
                there = content[landing.offset : landing.offset + landing.length]
                assert medium.data[landing.start : landing.start + landing.length] == there
        assert covered == medium.size
