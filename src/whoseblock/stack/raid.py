"""The arithmetic of striping, mirroring and parity, in both directions.

An array is cut into chunks, and each of its members into rows of the same size.  A `Striping` says
in which cells (member, row) a chunk of the array is kept, and what a cell of a member holds.  The
layouts are those of the kernel's drivers/md (raid0.c, raid10.c, raid5.c) and dm-stripe.c, and are
checked against arrays that the kernel has written.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from whoseblock.errors import UnsupportedError
from whoseblock.media.base import Media
from whoseblock.media.mapped import Copy, Part
from whoseblock.stack.base import Layer, Piece

__all__ = ["Member", "MemberSegment", "Raid0", "Raid1", "Raid5", "Raid10", "Striping", "locate"]


class Cell(NamedTuple):
    """One chunk on one member."""

    member: int
    row: int


class Striping(Protocol):
    """How chunks of ``chunk`` bytes lie on ``members`` members."""

    chunk: int
    members: int
    #: Worth telling of data that failed on one member; "" if nothing else has it.
    redundancy: str

    def cells(self, number: int) -> Sequence[Cell]:
        """Say where a chunk of the array is kept; every copy."""

    def holds(self, cell: Cell) -> int | str:
        """Give the number of the chunk that a cell holds, or what it holds instead."""


class Raid0:
    """Striping over members that may differ in size.

    ``rows`` are the sizes of the members in chunks.  Where the smallest ends, a new zone goes on
    with the others.  ``global_order`` is the layout of kernels before 3.14, in which the order of
    members in a later zone follows from the place in the array, not in the zone.
    """

    redundancy = ""

    def __init__(self, chunk: int, rows: Sequence[int], *, global_order: bool = False) -> None:
        self.chunk = chunk
        self.members = len(rows)
        self._global = global_order
        #: First chunk of the array, first row, rows, members.
        self._zones: list[tuple[int, int, int, list[int]]] = []
        chunks = row = 0
        for end in sorted(set(rows)):
            inside = [member for member, size in enumerate(rows) if size > row]
            if end > row:
                self._zones.append((chunks, row, end - row, inside))
                chunks += (end - row) * len(inside)
                row = end
        self.chunks = chunks

    def cells(self, number: int) -> Sequence[Cell]:
        """Say where a chunk of the array is kept."""
        for first, row, rows, inside in self._zones:
            if number < first + rows * len(inside):
                order = number if self._global else number - first
                return (Cell(inside[order % len(inside)], row + (number - first) // len(inside)),)
        return ()

    def holds(self, cell: Cell) -> int | str:
        """Give the number of the chunk that a cell holds."""
        for first, row, rows, inside in self._zones:
            if row <= cell.row < row + rows and cell.member in inside:
                shift = first % len(inside) if self._global else 0
                place = (inside.index(cell.member) - shift) % len(inside)
                return first + (cell.row - row) * len(inside) + place
        return "not used by the array"


class Raid1:
    """The same on every member; a chunk is as large as may be."""

    redundancy = "another member has a copy"

    def __init__(self, members: int, size: int) -> None:
        self.chunk = size
        self.members = members

    def cells(self, number: int) -> Sequence[Cell]:
        """Say where a chunk of the array is kept."""
        return [Cell(member, number) for member in range(self.members)]

    def holds(self, cell: Cell) -> int | str:
        """Give the number of the chunk that a cell holds."""
        return cell.row


class Raid10:
    """Copies near each other, far from each other, or both.

    ``layout`` is md's: near copies in the lowest byte, far copies in the next, then a bit for
    far copies at an offset of one row, and two for sets of members that far copies stay within.
    ``rows`` is the size of a member in chunks.
    """

    redundancy = "another member has a copy"

    def __init__(self, chunk: int, members: int, layout: int, rows: int) -> None:
        self.chunk = chunk
        self.members = members
        self._near = layout & 0xFF
        self._far = layout >> 8 & 0xFF
        self._offset = bool(layout & 1 << 16)
        sets = layout >> 17
        if not self._near or not self._far or sets > 2 or self._near * self._far > members:  # noqa: PLR2004
            raise UnsupportedError(f"a RAID 10 with the layout {layout:#x} is not known")
        self._set = (members, members // self._far, self._far * self._near)[sets]
        #: The last set takes what is left over.
        self._last_set = (members // self._set - 1) * self._set
        chunks = rows // self._far * members // self._near
        used = -(-chunks * self._near * self._far // members)
        self._stride = 1 if self._offset else used // self._far
        self.chunks = chunks

    def _shifted(self, member: int) -> int:
        """Give the member that has the next far copy of what this one has."""
        own_set = member // self._set
        member += self._near
        if self.members % self._set and member > self._last_set:
            size = self._set + self.members % self._set
            return (member - self._last_set) % size + self._last_set
        return member % self._set + self._set * own_set

    def cells(self, number: int) -> Sequence[Cell]:
        """Say where a chunk of the array is kept; every copy."""
        row, member = divmod(number * self._near, self.members)
        if self._offset:
            row *= self._far
        found = []
        for _ in range(self._near):
            copy, copy_row = member, row
            for _ in range(self._far):
                found.append(Cell(copy, copy_row))
                copy, copy_row = self._shifted(copy), copy_row + self._stride
            member += 1
            if member == self.members:
                member, row = 0, row + (self._far if self._offset else 1)
        return found

    def holds(self, cell: Cell) -> int | str:
        """Give the number of the chunk that a cell holds."""
        if self._offset:
            row, copy = divmod(cell.row, self._far)
        elif self._far > 1:
            copy, row = divmod(cell.row, self._stride)
        else:
            copy, row = 0, cell.row
        if copy < self._far:
            for first in range(self.members):
                member = first
                for _ in range(copy):
                    member = self._shifted(member)
                number = (row * self.members + first) // self._near
                if member == cell.member and number < self.chunks:
                    return number
        return "not used by the array"


#: md's numbers of the layouts of RAID 5 and 6 that are followed.
_LEFT_ASYMMETRIC, _RIGHT_ASYMMETRIC, _LEFT_SYMMETRIC, _RIGHT_SYMMETRIC = range(4)
_PARITY_0, _PARITY_N = 4, 5


class Raid5:
    """One chunk of parity in each row, or with ``parities`` 2 (RAID 6) two of them."""

    redundancy = "the other members can give it back"

    def __init__(self, chunk: int, members: int, layout: int, parities: int = 1) -> None:
        if not _LEFT_ASYMMETRIC <= layout <= _PARITY_N or members <= parities:
            raise UnsupportedError(f"a RAID {4 + parities} with the layout {layout} is not known")
        self.chunk = chunk
        self.members = members
        self._layout = layout
        self._parities = parities
        self._data = members - parities

    def _parity(self, row: int) -> int:
        """Give the member that has a row's (first) parity."""
        if self._layout == _PARITY_0:
            return 0
        if self._layout == _PARITY_N:
            return self._data
        turn = row % self.members
        if self._layout in (_LEFT_ASYMMETRIC, _LEFT_SYMMETRIC):
            return self.members - 1 - turn
        return turn

    def _row(self, row: int) -> list[int]:
        """Give the members that have a row's data chunks, in order."""
        first = self._parity(row)
        parity = {(first + number) % self.members for number in range(self._parities)}
        if self._layout in (_LEFT_SYMMETRIC, _RIGHT_SYMMETRIC):
            after = first + self._parities
            return [(after + number) % self.members for number in range(self._data)]
        return [member for member in range(self.members) if member not in parity]

    def cells(self, number: int) -> Sequence[Cell]:
        """Say where a chunk of the array is kept."""
        row, place = divmod(number, self._data)
        return (Cell(self._row(row)[place], row),)

    def holds(self, cell: Cell) -> int | str:
        """Give the number of the chunk that a cell holds, or the word for its parity."""
        data = self._row(cell.row)
        if cell.member in data:
            return cell.row * self._data + data.index(cell.member)
        if self._parities == 1:
            return "parity"
        return "parity (P)" if cell.member == self._parity(cell.row) else "parity (Q)"


class MemberSegment(NamedTuple):
    """The part of a layer that is member ``number`` of an array with the layer ``to``.

    ``to_start`` is added to places in the array: a stripe may be a part of a volume.
    """

    start: int
    length: int
    to: Layer
    striping: Striping
    number: int
    to_start: int = 0
    what: str = ""

    def pieces(self, start: int, length: int) -> Iterable[Piece]:
        """Say where each chunk of a part of the segment leads."""
        chunk = self.striping.chunk
        remark = self.striping.redundancy and f"{self.to.name}: {self.striping.redundancy}"
        for place, row, within, size in _chunks(start - self.start, length, chunk):
            held = self.striping.holds(Cell(self.number, row))
            here = place + self.start
            if isinstance(held, str):
                yield Piece(here, size, what=f"{held} of {self.to.name}", remark=remark)
                continue
            to_start = self.to_start + held * chunk + within
            yield Piece(here, size, self.to, to_start, remark=remark)


class Member(NamedTuple):
    """Where a member of an array is read: its data begins at ``start`` of ``media``."""

    media: Media | None
    start: int
    name: str = ""


def locate(
    striping: Striping, members: Sequence[Member], start: int, length: int
) -> Iterator[Part]:
    """Give the parts of a range of an array, with every copy, for `MappedMedia`."""
    chunk = striping.chunk
    for _, number, within, size in _chunks(start, length, chunk):
        copies = tuple(
            Copy(
                members[cell.member].media,
                members[cell.member].start + cell.row * chunk + within,
                members[cell.member].name,
            )
            for cell in striping.cells(number)
        )
        yield Part(size, copies)


def _chunks(start: int, length: int, chunk: int) -> Iterator[tuple[int, int, int, int]]:
    """Cut a range at chunks: where each begins, its number, the place within it, how many bytes."""
    end = start + length
    while start < end:
        number, within = divmod(start, chunk)
        size = min(end - start, chunk - within)
        yield start, number, within, size
        start += size
