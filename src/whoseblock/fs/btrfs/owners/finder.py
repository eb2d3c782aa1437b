"""The owners of ranges of the device: chunks, superblocks, extents and free space."""

from collections.abc import Iterator
from typing import Final, NamedTuple

from whoseblock.errors import BlockError
from whoseblock.fs.base import FileId
from whoseblock.fs.btrfs.chunks import Chunk, StripeRun
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
    """Bytes of the device that no file has: ``kind`` is as in the contract.

    ``detail`` is what `static` metadata is, or what lies outside; ``holders`` are of an
    ``unreferenced`` piece.
    """

    start: int
    length: int
    kind: str
    detail: str = ""
    holders: tuple[FileId, ...] = ()
    copies: tuple[int, ...] = ()


class FilePiece(NamedTuple):
    """Bytes of the device that a file has: ``part`` has the lost bytes of the file."""

    start: int
    length: int
    part: FilePart
    shared: bool
    copies: tuple[int, ...]


class TreePiece(NamedTuple):
    """A tree block: its trees, and for leaves of files the inodes and those with inline data."""

    start: int
    length: int
    trees: tuple[int, ...]
    detail: str
    inodes: tuple[int, int] | None
    inline: tuple[FileId, ...]
    copies: tuple[int, ...]


Piece = PlainPiece | FilePiece | TreePiece
#: A string is a note that makes the answer incomplete.
Found = Piece | str


class _Place(NamedTuple):
    """Logical addresses of a chunk, as bytes of the device."""

    chunk: Chunk
    number: int

    def physical(self, logical: int) -> int:
        return self.chunk.places[self.number] + logical - self.chunk.start

    def copies(self, logical: int) -> tuple[int, ...]:
        return tuple(
            place + logical - self.chunk.start
            for number, place in enumerate(self.chunk.places)
            if number != self.number
        )


class OwnerFinder:
    """Finds the owners of ranges of one device."""

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        self.extents = ExtentIndex(volume)
        self.sharing = SharingIndex(volume, self.extents)
        self.resolver = ReferenceResolver(volume, self.sharing)
        self.free = FreeSpace(volume)

    def find(self, start: int, length: int) -> Iterator[Found]:
        """Yield the owners of a range of the device, ordered by start, and notes between them."""
        end = start + length
        inside = min(end, self.volume.size)
        for low, high, copy in _cut_at_superblocks(start, inside):
            if copy is not None:
                what = f"copy {copy} of the superblock" if copy else "superblock"
                yield PlainPiece(low, high - low, "static", what)
                continue
            for run in self.volume.chunks.runs(low, high):
                yield from self._find_run(run)
        if inside < end:
            low = max(start, inside)
            yield PlainPiece(low, end - low, "outside", "past the end of the filesystem")

    def _find_run(self, run: StripeRun) -> Iterator[Found]:
        length = run.end - run.start
        if run.chunk is not None:
            yield from self._find_in_chunk(run, _Place(run.chunk, run.place))
        elif run.start < _RESERVED:
            edge = min(run.end, _RESERVED)
            yield PlainPiece(run.start, edge - run.start, "static", "reserved for a boot loader")
            if edge < run.end:
                yield from self._find_run(run._replace(start=edge))
        elif fault := self.volume.allocation_fault:
            yield fault
            yield PlainPiece(run.start, length, "unknown")
        else:
            yield PlainPiece(run.start, length, "free")

    # ------------------------------------------------------------------ in a chunk

    def _find_in_chunk(self, run: StripeRun, place: _Place) -> Iterator[Found]:
        chunk = place.chunk
        low = chunk.start + run.start - chunk.places[place.number]
        high = low + run.end - run.start
        at = low
        doubt = ""
        for found in self.extents.within(chunk, low, high):
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

    def _gap(self, place: _Place, low: int, high: int, doubt: str) -> Iterator[Found]:
        """Yield a part of a chunk without an extent: free, if that is certain."""
        if fault := doubt or self.free.fault(place.chunk, low, high):
            yield fault
            yield PlainPiece(place.physical(low), high - low, "unknown")
            return
        at = low
        for first, last in _around_superblocks(place.chunk):
            begin, end = max(first, at), min(last, high)
            if begin < end:
                if at < begin:
                    yield PlainPiece(place.physical(at), begin - at, "free")
                what = "reserved around the superblock"
                yield PlainPiece(place.physical(begin), end - begin, "static", what)
                at = end
        if at < high:
            yield PlainPiece(place.physical(at), high - at, "free")

    def _rows(self, extent: Extent, place: _Place, low: int, high: int) -> Iterator[Found]:
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
            yield FilePiece(place.physical(begin), end - begin, part, shared, place.copies(begin))
        if at < high:
            yield self._held(place, at, high, found.parts if is_certain else ())

    @staticmethod
    def _held(place: _Place, low: int, high: int, parts: tuple[FilePart, ...]) -> PlainPiece:
        """Return the piece for bytes of an extent that no file refers to."""
        start, length = place.physical(low), high - low
        if not parts:
            return PlainPiece(start, length, "unknown")
        holders = tuple(dict.fromkeys(FileId(part.subvolume, part.inode) for part in parts))
        return PlainPiece(start, length, "unreferenced", "", holders, place.copies(low))

    # ------------------------------------------------------------------ tree blocks

    def _tree_rows(self, extent: Extent, place: _Place, low: int, high: int) -> Iterator[Found]:
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
        yield TreePiece(
            place.physical(low), high - low, trees, detail, inodes, inline, place.copies(low)
        )


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


def _around_superblocks(chunk: Chunk) -> list[tuple[int, int]]:
    """Return the logical addresses of a chunk where the kernel allocates no extent, in order."""
    found = [
        (chunk.start + offset - place, chunk.start + offset - place + STRIPE)
        for place in chunk.places
        for offset in COPIES
        if place <= offset < place + chunk.length
    ]
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
