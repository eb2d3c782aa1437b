"""Compute where striping, mirroring and parity put data, in both directions.

An array is cut into chunks, and each of its members into rows of the chunk size. A cell is one row
of one member. A `Striping` maps a chunk of the array to its cells, and a cell to its chunk. The
layouts are those of the kernel's drivers/md (raid0.c, raid10.c, raid5.c), dm-stripe.c and
fs/btrfs/volumes.c; the tests compare them with arrays written by the kernel.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from whoseblock.errors import UnsupportedError

__all__ = ["RIGHT_SYMMETRIC", "Cell", "Raid0", "Raid1", "Raid5", "Raid10", "Striping"]


class Cell(NamedTuple):
    """One chunk on one member."""

    member: int
    row: int


class Striping(Protocol):
    """The layout of chunks of ``chunk`` bytes on ``members`` members."""

    chunk: int
    members: int
    #: A note for data that failed on one member; "" without redundancy.
    redundancy: str

    def locate_chunk(self, number: int) -> Sequence[Cell]:
        """Return the cells of a chunk of the array, one for each copy."""

    def identify_cell(self, cell: Cell) -> int | str:
        """Return the number of the chunk in a cell, or the name of its other use."""


class Raid0:
    """Striping over members that may differ in size.

    ``rows`` are the sizes of the members in chunks. Where the smallest member ends, a new zone
    continues on the others. ``global_order`` is the layout of kernels before 3.14: the order of
    members in a later zone depends on the offset in the array, not in the zone.
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

    def locate_chunk(self, number: int) -> Sequence[Cell]:
        """Return the cells of a chunk of the array."""
        for first, row, rows, inside in self._zones:
            if number < first + rows * len(inside):
                order = number if self._global else number - first
                return (Cell(inside[order % len(inside)], row + (number - first) // len(inside)),)
        return ()

    def identify_cell(self, cell: Cell) -> int | str:
        """Return the number of the chunk in a cell, or the name of its other use."""
        for first, row, rows, inside in self._zones:
            if row <= cell.row < row + rows and cell.member in inside:
                shift = first % len(inside) if self._global else 0
                place = (inside.index(cell.member) - shift) % len(inside)
                return first + (cell.row - row) * len(inside) + place
        return "not used by the array"


class Raid1:
    """The same data on every member; there is one chunk, as large as a member."""

    redundancy = "another member has a copy"

    def __init__(self, members: int, size: int) -> None:
        self.chunk = size
        self.members = members

    def locate_chunk(self, number: int) -> Sequence[Cell]:
        """Return the cells of a chunk of the array."""
        return [Cell(member, number) for member in range(self.members)]

    def identify_cell(self, cell: Cell) -> int | str:
        """Return the number of the chunk in a cell, or the name of its other use."""
        return cell.row


class Raid10:
    """Near copies, far copies, or both.

    ``layout`` is md's. The lowest byte is the number of near copies, the next that of far copies.
    Then comes a bit for far copies at an offset of one row, and two bits for sets of members that
    far copies stay within. ``rows`` is the size of a member in chunks.
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
            raise UnsupportedError(f"a RAID 10 with the layout {layout:#x} is not supported")
        self._set = (members, members // self._far, self._far * self._near)[sets]
        #: The last set includes the remaining members.
        self._last_set = (members // self._set - 1) * self._set
        chunks = rows // self._far * members // self._near
        used = -(-chunks * self._near * self._far // members)
        self._stride = 1 if self._offset else used // self._far
        self.chunks = chunks

    def _next_far_member(self, member: int) -> int:
        """Return the member with the next far copy of the data of a member."""
        own_set = member // self._set
        member += self._near
        if self.members % self._set and member > self._last_set:
            size = self._set + self.members % self._set
            return (member - self._last_set) % size + self._last_set
        return member % self._set + self._set * own_set

    def locate_chunk(self, number: int) -> Sequence[Cell]:
        """Return the cells of a chunk of the array, one for each copy."""
        row, member = divmod(number * self._near, self.members)
        if self._offset:
            row *= self._far
        found = []
        for _ in range(self._near):
            copy, copy_row = member, row
            for _ in range(self._far):
                found.append(Cell(copy, copy_row))
                copy, copy_row = self._next_far_member(copy), copy_row + self._stride
            member += 1
            if member == self.members:
                member, row = 0, row + (self._far if self._offset else 1)
        return found

    def identify_cell(self, cell: Cell) -> int | str:
        """Return the number of the chunk in a cell, or the name of its other use."""
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
                    member = self._next_far_member(member)
                number = (row * self.members + first) // self._near
                if member == cell.member and number < self.chunks:
                    return number
        return "not used by the array"


#: md's numbers of the supported layouts of RAID 5 and 6.
_LEFT_ASYMMETRIC, _RIGHT_ASYMMETRIC, _LEFT_SYMMETRIC, RIGHT_SYMMETRIC = range(4)
_PARITY_FIRST, _PARITY_LAST = 4, 5


class Raid5:
    """RAID 5 with one chunk of parity in each row, or RAID 6 with two (``parities``).

    ``layout`` is md's.  The parity of row 0 is where md has that of row ``turn``.
    """

    redundancy = "it can be rebuilt from the other members"

    def __init__(
        self, chunk: int, members: int, layout: int, parities: int = 1, *, turn: int = 0
    ) -> None:
        if not _LEFT_ASYMMETRIC <= layout <= _PARITY_LAST or members <= parities:
            raise UnsupportedError(
                f"a RAID {4 + parities} with the layout {layout} is not supported"
            )
        self.chunk = chunk
        self.members = members
        self._layout = layout
        self._parities = parities
        self._data = members - parities
        self._turn = turn

    def _parity_member(self, row: int) -> int:
        """Return the member with the first parity of a row."""
        if self._layout == _PARITY_FIRST:
            return 0
        if self._layout == _PARITY_LAST:
            return self._data
        turn = (row + self._turn) % self.members
        if self._layout in (_LEFT_ASYMMETRIC, _LEFT_SYMMETRIC):
            return self.members - 1 - turn
        return turn

    def _data_members(self, row: int) -> list[int]:
        """Return the members with the data chunks of a row, in order."""
        first = self._parity_member(row)
        parity = {(first + number) % self.members for number in range(self._parities)}
        if self._layout in (_LEFT_SYMMETRIC, RIGHT_SYMMETRIC):
            after = first + self._parities
            return [(after + number) % self.members for number in range(self._data)]
        return [member for member in range(self.members) if member not in parity]

    def locate_chunk(self, number: int) -> Sequence[Cell]:
        """Return the cells of a chunk of the array."""
        row, place = divmod(number, self._data)
        return (Cell(self._data_members(row)[place], row),)

    def identify_cell(self, cell: Cell) -> int | str:
        """Return the number of the chunk in a cell, or the name of its parity."""
        data = self._data_members(cell.row)
        if cell.member in data:
            return cell.row * self._data + data.index(cell.member)
        if self._parities == 1:
            return "parity"
        return "parity (P)" if cell.member == self._parity_member(cell.row) else "parity (Q)"
