"""The owners of ranges of devices and of logical addresses: chunks, extents and free space."""

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Final, NamedTuple

from whoseblock.errors import BlockError
from whoseblock.fs.base import FileId
from whoseblock.fs.btrfs.chunks import Chunk, Place, StripeCell, StripeRun
from whoseblock.fs.btrfs.format.items import INLINE, parse_file_extent
from whoseblock.fs.btrfs.format.keys import (
    EXTENT_DATA,
    FIRST_FREE,
    LAST_FREE,
    is_file_tree,
    tree_name,
)
from whoseblock.fs.btrfs.format.node import Node
from whoseblock.fs.btrfs.format.superblock import COPIES, STRIPE, SUPERBLOCK_SIZE
from whoseblock.fs.btrfs.owners.extents import Extent, ExtentIndex, LostExtents
from whoseblock.fs.btrfs.owners.free import FreeSpace
from whoseblock.fs.btrfs.owners.references import FilePart, ReferenceResolver
from whoseblock.fs.btrfs.owners.sharing import SharingIndex
from whoseblock.fs.btrfs.volume import Volume

__all__ = ["FilePiece", "Found", "OwnerFinder", "Piece", "PlainPiece", "TreePiece"]

#: The kernel allocates nothing before this byte of a device.
_RESERVED: Final = 1 << 20


class PlainPiece(NamedTuple):
    """Bytes that no file has: ``kind`` is as in the contract.

    ``detail`` is what `static` metadata is, or what lies outside; ``holders`` are of an
    ``unreferenced`` piece.  ``logical`` is the logical address if a chunk has the bytes.
    """

    start: int
    length: int
    kind: str
    detail: str = ""
    holders: tuple[FileId, ...] = ()
    copies: tuple[Place, ...] = ()
    logical: int | None = None


class FilePiece(NamedTuple):
    """Bytes that a file has: ``part`` has the lost bytes of the file."""

    start: int
    length: int
    part: FilePart
    shared: bool
    copies: tuple[Place, ...]
    logical: int


class TreePiece(NamedTuple):
    """A tree block: its trees, and for leaves of files the inodes and those with inline data."""

    start: int
    length: int
    trees: tuple[int, ...]
    detail: str
    inodes: tuple[int, int] | None
    inline: tuple[FileId, ...]
    copies: tuple[Place, ...]
    logical: int


Piece = PlainPiece | FilePiece | TreePiece
#: A string is a note that makes the answer incomplete.
Found = Piece | str


class _Cell(NamedTuple):
    """Logical addresses from ``logical`` on that lie together from byte ``start`` on.

    ``device`` is the number of the device that was asked, None if they are as they were asked.
    """

    chunk: Chunk
    device: int | None
    start: int
    logical: int

    def place(self, logical: int) -> int:
        return self.start + logical - self.logical

    def copies(self, logical: int) -> tuple[Place, ...]:
        _, places = self.chunk.places(logical)
        own = None if self.device is None else Place(self.device, self.place(logical))
        return tuple(place for place in places if place != own)


class OwnerFinder:
    """Finds the owners of ranges of the devices, and of logical addresses.

    ``make_resolver`` makes what resolves the back references of data.
    """

    def __init__(
        self,
        volume: Volume,
        make_resolver: Callable[[Volume, SharingIndex], ReferenceResolver] = ReferenceResolver,
    ) -> None:
        self.volume = volume
        self.extents = ExtentIndex(volume)
        self.sharing = SharingIndex(volume, self.extents)
        self.resolver = make_resolver(volume, self.sharing)
        self.free = FreeSpace(volume)

    def find(self, device: int, start: int, length: int) -> Iterator[Found]:
        """Yield the owners of a range of a device, ordered by start, and notes between them."""
        return _joined(self._find(device, start, length))

    def _find(self, device: int, start: int, length: int) -> Iterator[Found]:
        volume = self.volume
        end = start + length
        inside = min(end, volume.items[device].size)
        for low, high, copy in _cut_at_superblocks(start, inside):
            if copy is not None:
                what = f"copy {copy} of the superblock" if copy else "superblock"
                yield PlainPiece(low, high - low, "static", what)
            elif fault := volume.device_faults.get(device):
                yield fault
                yield PlainPiece(low, high - low, "unknown")
            else:
                for run in volume.chunks.runs(device, low, high):
                    yield from self._find_run(device, run)
        if inside < end:
            low = max(start, inside)
            yield PlainPiece(low, end - low, "outside", "past the end of the filesystem")

    def _find_run(self, device: int, run: StripeRun) -> Iterator[Found]:
        length = run.end - run.start
        if run.chunk is not None:
            for cell in run.chunk.cells(run.number, run.start, run.end):
                yield from self._find_cell(run.chunk, device, cell)
        elif run.start < _RESERVED:
            edge = min(run.end, _RESERVED)
            yield PlainPiece(run.start, edge - run.start, "static", "reserved for a boot loader")
            if edge < run.end:
                yield from self._find_run(device, run._replace(start=edge))
        elif fault := self.volume.allocation_fault:
            yield fault
            yield PlainPiece(run.start, length, "unknown")
        else:
            yield PlainPiece(run.start, length, "free")

    def _find_cell(self, chunk: Chunk, device: int, cell: StripeCell) -> Iterator[Found]:
        if not cell.parity:
            at = _Cell(chunk, device, cell.start, cell.logical)
            yield from self._find_in_chunk(at, cell.logical, cell.logical + cell.length)
        elif fault := self.free.group_fault(chunk):
            yield fault
            yield PlainPiece(cell.start, cell.length, "unknown")
        else:
            what = f"{cell.parity} of logical addresses {cell.logical}+{chunk.row_length}"
            yield PlainPiece(cell.start, cell.length, "outside", what)

    def find_logical(self, start: int, length: int) -> Iterator[Found]:
        """Yield the owners of a range of logical addresses, with the places of all copies."""
        return _joined(self._find_logical(start, length))

    def _find_logical(self, start: int, length: int) -> Iterator[Found]:
        for low, high, chunk in self.volume.chunks.within(start, start + length):
            at = low
            while chunk is not None and at < high:
                together, _ = chunk.places(at)
                end = min(at + together, high)
                yield from self._find_in_chunk(_Cell(chunk, None, at, at), at, end)
                at = end
            if chunk is None:
                yield PlainPiece(low, high - low, "outside", "no chunk has these logical addresses")

    # ------------------------------------------------------------------ in a chunk

    def _find_in_chunk(self, place: _Cell, low: int, high: int) -> Iterator[Found]:
        at = low
        doubt = ""
        for found in self.extents.within(place.chunk, low, high):
            if isinstance(found, LostExtents):
                if at < found.start and not doubt:
                    yield from self._gap(place, at, min(found.start, high), doubt)
                    at = min(found.start, high)
                doubt = doubt or found.reason
                continue
            if at < found.start:
                yield from self._gap(place, at, found.start, doubt)
                at = found.start
            doubt = ""
            upper = min(found.end, high)
            yield from self._rows(found, place, at, upper)
            at = upper
        if at < high:
            yield from self._gap(place, at, high, doubt)

    def _gap(self, place: _Cell, low: int, high: int, doubt: str) -> Iterator[Found]:
        """Yield a part of a chunk without an extent: free, if that is certain."""
        if fault := doubt or self.free.fault(place.chunk, low, high):
            yield fault
            yield _plain(place, low, high, "unknown")
            return
        at = low
        for first, last in _around_superblocks(place.chunk):
            begin, end = max(first, at), min(last, high)
            if begin < end:
                if at < begin:
                    yield _plain(place, at, begin, "free")
                yield _plain(place, begin, end, "static", "reserved around the superblock")
                at = end
        if at < high:
            yield _plain(place, at, high, "free")

    def _rows(self, extent: Extent, place: _Cell, low: int, high: int) -> Iterator[Found]:
        """Yield the owners of a part of an extent."""
        if extent.item.is_tree:
            yield from self._tree_rows(extent, place, low, high)
            return
        found = self.resolver.resolve(extent)
        yield from found.faults
        # The logical addresses in the range that each part of a file has.
        claims: list[tuple[int, int, FilePart]] = []
        for part in found.parts:
            begin, end, claim = extent.start, extent.end, part
            if not part.encoding:
                begin += part.offset
                end = begin + part.length
                # From here on the file has its bytes in the range.
                skipped = max(low - begin, 0)
                claim = part._replace(file_offset=part.file_offset + skipped)
            begin, end = max(begin, low), min(end, high)
            if begin < end:
                claims.append((begin, end, claim))
        claims.sort()
        if not found.parts and not found.faults:
            yield f"no file has the extent at logical address {extent.start}"
        is_certain = found.parts and not found.faults
        at, reach = low, 0
        for number, (begin, end, part) in enumerate(claims):
            if at < begin:
                yield self._held(place, at, begin, found.parts if is_certain else ())
            follows = number + 1 < len(claims) and claims[number + 1][0] < end
            shared = follows or reach > begin
            at = reach = max(at, reach, end)
            start, copies = place.place(begin), place.copies(begin)
            yield FilePiece(start, end - begin, part, shared, copies, begin)
        if at < high:
            yield self._held(place, at, high, found.parts if is_certain else ())

    @staticmethod
    def _held(place: _Cell, low: int, high: int, parts: tuple[FilePart, ...]) -> PlainPiece:
        """Return the piece for bytes of an extent that no file refers to."""
        if not parts:
            return _plain(place, low, high, "unknown")
        holders = tuple(dict.fromkeys(FileId(part.subvolume, part.inode) for part in parts))
        piece = _plain(place, low, high, "unreferenced")
        return piece._replace(holders=holders, copies=place.copies(low))

    # ------------------------------------------------------------------ tree blocks

    def _tree_rows(self, extent: Extent, place: _Cell, low: int, high: int) -> Iterator[Found]:
        shared = self.sharing.trees_of(extent.start)
        yield from shared.faults
        trees = tuple(sorted(shared.trees))
        if not trees and not shared.faults:
            yield f"no tree has the tree block at logical address {extent.start}"
        inodes: tuple[int, int] | None = None
        inline: tuple[FileId, ...] = ()
        if any(map(is_file_tree, trees)) and not extent.item.level:
            try:
                inodes, inline = _content(self.sharing.read(extent), trees)
            except BlockError as error:
                yield f"{error}: the files in it are not named"
        detail = tree_name(trees[0]) if trees else "tree block"
        if len(trees) > 1:
            detail += f" and {len(trees) - 1} more"
        start, copies = place.place(low), place.copies(low)
        yield TreePiece(start, high - low, trees, detail, inodes, inline, copies, low)


def _plain(place: _Cell, low: int, high: int, kind: str, detail: str = "") -> PlainPiece:
    return PlainPiece(place.place(low), high - low, kind, detail, logical=low)


def _joined(found: Iterator[Found]) -> Iterator[Found]:
    """Join free pieces that follow each other; the stripes of a chunk cut them."""
    held: PlainPiece | None = None
    for one in found:
        if isinstance(one, PlainPiece) and one.kind == "free":
            # Joined, the bytes have no logical address in common.
            follows = held is not None and held.start + held.length == one.start
            if held is not None and follows:
                held = held._replace(length=held.length + one.length, logical=None)
                continue
            if held is not None:
                yield held
            held = one
            continue
        if held is not None:
            yield held
            held = None
        yield one
    if held is not None:
        yield held


def _cut_at_superblocks(start: int, end: int) -> Iterator[tuple[int, int, int | None]]:
    """Cut a range: yield its parts, each with the number of the superblock in it or None."""
    at = start
    for number, offset in enumerate(COPIES):
        low, high = max(offset, at), min(offset + SUPERBLOCK_SIZE, end)
        if low < high:
            if at < low:
                yield at, low, None
            yield low, high, number
            at = high
    if at < end:
        yield at, end, None


@lru_cache(1 << 10)
def _around_superblocks(chunk: Chunk) -> list[tuple[int, int]]:
    """Return the logical addresses of a chunk where the kernel allocates no extent, in order.

    Those are the unit of stripes with the superblock of a device, and with parity the whole row
    (btrfs_rmap_block() and exclude_super_stripes() of Linux).
    """
    found: set[tuple[int, int]] = set()
    for number, place in enumerate(chunk.stripes):
        for offset in COPIES:
            if place.start <= offset < place.start + chunk.stripe_length:
                (cell,) = chunk.cells(number, offset, offset + 1)
                low, length = cell.logical, STRIPE
                if chunk.profile.parities:
                    low -= (low - chunk.start) % chunk.row_length
                    length = chunk.row_length
                found.add((low, low + length))
    return sorted(found)


def _content(
    node: Node, trees: tuple[int, ...]
) -> tuple[tuple[int, int] | None, tuple[FileId, ...]]:
    """Return the first and the last inode in a leaf, and the files whose data is in it."""
    inodes = [key[0] for key in node.keys if FIRST_FREE <= key[0] <= LAST_FREE]
    if not inodes:
        return None, ()
    inline: dict[int, None] = {}
    for index, (objectid, kind, _) in enumerate(node.keys):
        if kind == EXTENT_DATA:
            part = parse_file_extent(node.data(index))
            if part is not None and part.kind == INLINE:
                inline[objectid] = None
    subvolumes = [tree for tree in trees if is_file_tree(tree)]
    files = tuple(FileId(tree, inode) for tree in subvolumes for inode in inline)
    return (inodes[0], inodes[-1]), files
