"""The map of a device: which of its bytes failed, and what kind of owner they have.

The overview has `CELLS` cells of equal size, and is always whole.  The areas are exact, and
bounded in number.
"""

from array import array
from collections.abc import Hashable, Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from whoseblock.fs.arrays import KINDS as ROW_KINDS
from whoseblock.fs.arrays import WHATS
from whoseblock.fs.base import FileId, FileOwner, Owner
from whoseblock.summary import KINDS, kind_of

if TYPE_CHECKING:
    from whoseblock.columns import PlacedColumns

__all__ = ["CELLS", "COLUMNS", "MAX_AREAS", "Areas", "DeviceMap", "FileKey"]

#: The cells of an overview, and those of one of its rows.
CELLS: Final = 1024
COLUMNS: Final = 64
#: Cells are whole sectors.
_SECTOR: Final = 512
#: The exact areas of all maps of a report; each takes some 20 bytes of the page.
MAX_AREAS: Final = 100_000

#: A file, or a part of it that is not data: its layer, its identity, `FileOwner.what`.
FileKey = tuple[str, FileId, str]


class Areas(NamedTuple):
    """Areas in columns: start, length, the index of the kind in `KINDS`, the key of the file."""

    starts: "array[int]"
    lengths: "array[int]"
    kinds: "array[int]"
    keys: list[Hashable]


class DeviceMap:
    """The map of one device or image of ``size`` bytes, from rows in any order.

    At most ``limit`` areas are kept; ``left_out`` counts the others.  ``is_whole`` is false if the
    size of the device is unknown, and ``size`` is where its last area ends.
    """

    def __init__(
        self, name: str, size: int, limit: int = MAX_AREAS, *, is_whole: bool = True
    ) -> None:
        self.name = name
        self.size = size
        self.is_whole = is_whole
        self.cell = max(-(-size // CELLS // _SECTOR) * _SECTOR, _SECTOR)
        self.areas = Areas(array("Q"), array("Q"), array("B"), [])
        self.left_out = 0
        self._limit = limit
        #: A bit for each kind that a cell has, the lowest for the first of `KINDS`.
        self._cells = [0] * CELLS

    def __len__(self) -> int:
        return len(self.areas.starts)

    def add_row(self, layer: str, row: Owner) -> None:
        """Add a row of an answer; ``layer`` is that of its filesystem."""
        key = (layer, row.file, row.what) if isinstance(row, FileOwner) else None
        self.add(row.start, row.length, kind_of(row), key)

    def add(self, start: int, length: int, kind: str, key: Hashable = None) -> None:
        """Add ``length`` bytes of a kind; an area that continues the last one is joined to it."""
        number = KINDS.index(kind)
        first, last = start // self.cell, (start + max(length, 1) - 1) // self.cell
        for cell in range(min(first, CELLS), min(last, CELLS - 1) + 1):
            self._cells[cell] |= 1 << number
        areas = self.areas
        if (
            areas.starts
            and areas.starts[-1] + areas.lengths[-1] == start
            and areas.kinds[-1] == number
            and areas.keys[-1] == key
        ):
            areas.lengths[-1] += length
        elif len(areas.starts) < self._limit:
            areas.starts.append(start)
            areas.lengths.append(length)
            areas.kinds.append(number)
            areas.keys.append(key)
        else:
            self.left_out += 1

    def add_columns(self, layer: str, placed: "PlacedColumns") -> None:
        """Add whole answers in columns."""
        rows = placed.columns.rows
        file = ROW_KINDS.index("file")
        places = zip(rows.start.tolist(), rows.length.tolist(), rows.kind.tolist(), strict=True)
        files = zip(rows.subvolume.tolist(), rows.inode.tolist(), rows.what.tolist(), strict=True)
        for (start, length, number), (subvolume, inode, what), unwritten in zip(
            places, files, rows.unwritten.tolist(), strict=True
        ):
            is_file = number == file
            key = (layer, FileId(subvolume, inode), WHATS[what]) if is_file else None
            kind = "unwritten" if is_file and unwritten else ROW_KINDS[number]
            self.add(start, length, kind, key)

    def cells(self) -> Iterator[tuple[int, tuple[str, ...]]]:
        """Yield the number of each cell in which something was asked, and the kinds there."""
        for number, bits in enumerate(self._cells):
            if bits:
                yield number, tuple(kind for rank, kind in enumerate(KINDS) if bits >> rank & 1)
