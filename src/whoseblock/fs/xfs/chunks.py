"""Inode chunks with NumPy: checksums and extents of thousands of inodes at once.

Inodes of version 3 whose extents are in the inode are decoded here.  Others are named, for
`InodeScan` to decode one by one: so only one module describes faults.
"""

import stat
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from whoseblock.fs.pieces import ATTR, DATA, DIRECTORY, FILE_DATA, SYMLINK, XATTR
from whoseblock.fs.scan.bulk import ExtentArrays
from whoseblock.fs.scan.checksums import keep_zero
from whoseblock.fs.scan.engine import UNWRITTEN
from whoseblock.fs.xfs.format.btree import (
    XFS_INODES_PER_CHUNK,
    XFS_INODES_PER_HOLEMASK_BIT,
    InobtRec,
)
from whoseblock.fs.xfs.format.inode import (
    DINODE,
    XFS_DIFLAG2_NREXT64,
    XFS_DIFLAG_REALTIME,
    XFS_DINODE_CRC_OFF,
    XFS_DINODE_FMT_DEV,
    XFS_DINODE_FMT_EXTENTS,
    XFS_DINODE_FMT_LOCAL,
    XFS_DINODE_MAGIC,
    XFS_DINODE_VERSION_3,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from whoseblock.fs.xfs.volume import Volume

    Ints = NDArray[np.int64]
    Bools = NDArray[np.bool_]

__all__ = ["ChunkDecoder", "Decoded", "Piece"]

#: Inodes that are decoded together.
_CAPACITY: Final = 1 << 12
#: Bytes of pieces that are held until they are enough to be worth a call of NumPy.
_HELD: Final = 1 << 20
_WORD: Final = 8
_CRC_END: Final = XFS_DINODE_CRC_OFF + 4
#: Behind each inode: the register by its checksum, and zeros up to a whole word.
_TAIL: Final = 8
_RECORD_WORDS: Final = 2
_OFFSET_BITS: Final = np.uint64((1 << 54) - 1)
_COUNT_BITS: Final = np.uint64((1 << 21) - 1)
_HIGH_BITS: Final = np.uint64((1 << 9) - 1)


class Piece(NamedTuple):
    """Bytes of a group from inode ``first`` on, in which chunks have inodes."""

    agno: int
    first: int
    chunks: Sequence[InobtRec]
    data: bytes


class Decoded(NamedTuple):
    """The extents of plain inodes, and the inodes that are not decoded.

    ``odd`` are in use, with their bytes.  ``stray`` are the places in a piece of those in use by
    the inode btree or by their mode alone.  ``inodes_done`` is how many inodes were read.
    """

    extents: ExtentArrays
    odd: list[tuple[int, bytes]]
    stray: list[tuple[Piece, list[int]]]
    inodes_done: int


class ChunkDecoder:
    """Decodes inodes of a volume with checksums, `_CAPACITY` together."""

    def __init__(self, volume: "Volume") -> None:
        self.volume = volume
        size = self._size = volume.inode_size
        self._text = np.zeros((_CAPACITY, size + _TAIL), np.uint8)
        self._numbers = np.zeros(_CAPACITY, np.int64)
        self._count = self._done = 0
        self._stray: list[tuple[Piece, list[int]]] = []
        self._held: list[Piece] = []
        self._held_bytes = 0
        fields = dict(DINODE.dtype().fields or {})
        whole: dict[str, object] = {"itemsize": size + _TAIL}
        names = [name for name in fields if name != "uuid"]
        formats: list[object] = [fields[name][0] for name in names]
        # As numbers: NumPy takes zeros at the end of a text for padding.
        whole["names"] = [*names, "uuid"]
        whole["formats"] = [*formats, ("<u8", (2,))]
        whole["offsets"] = [*(fields[name][1] for name in names), fields["uuid"][1]]
        self._dtype = np.dtype(whole)  # type: ignore[call-overload]
        self._uuid = np.frombuffer(volume.uuid, "<u8")

    def add(self, piece: Piece) -> Iterator[Decoded]:
        """Add a piece, and yield what has been decoded of all so far; small ones are joined."""
        self._held.append(piece)
        self._held_bytes += len(piece.data)
        if self._held_bytes >= _HELD:
            yield from self._take()

    def finish(self) -> Iterator[Decoded]:
        """Yield what is left."""
        yield from self._take()
        yield self._decode()

    def _take(self) -> Iterator[Decoded]:
        """Copy the inodes in use of all pieces to where they are decoded."""
        pieces, size = self._held, self._size
        self._held, self._held_bytes = [], 0
        if not pieces:
            return
        data = pieces[0].data if len(pieces) == 1 else b"".join(piece.data for piece in pieces)
        lengths = np.array([len(piece.data) // size for piece in pieces])
        ends = np.cumsum(lengths)
        chunks = [chunk for piece in pieces for chunk in piece.chunks]
        of_piece = np.repeat(np.arange(len(pieces)), [len(piece.chunks) for piece in pieces])
        firsts = np.array([piece.first for piece in pieces])
        # From an inode's number in its group to its place in the buffer.
        shift = (ends - lengths - firsts)[of_piece]
        starts = np.array([chunk.startino for chunk in chunks]) + shift
        places = starts[:, None] + np.arange(XFS_INODES_PER_CHUNK)
        exists = places >= (ends - lengths)[of_piece, None]
        exists &= places < ends[of_piece, None]
        exists &= ~_holes(chunks)
        bases = np.array([self.volume.join_inode(piece.agno, 0) for piece in pieces])
        numbers = places + (bases[of_piece] - shift)[:, None]
        free = np.array([chunk.free for chunk in chunks], "<u8").view(np.uint8)
        is_used = np.unpackbits(free, bitorder="little").reshape(places.shape) == 0
        places, numbers, is_used = places[exists], numbers[exists], is_used[exists]
        # The mode is the second field.
        has_mode = np.frombuffer(data, ">u2")[1 :: size // 2][places] != 0
        self._done += len(places)
        stray = places[is_used != has_mode]
        where = np.searchsorted(ends, stray, "right")
        for at in dict.fromkeys(where.tolist()):
            within = stray[where == at] - (ends[at] - lengths[at])
            self._stray.append((pieces[at], within.tolist()))
        taken = is_used & has_mode
        yield from self._copy(numbers[taken], data, places[taken])

    def _copy(self, numbers: "Ints", data: bytes, places: "Ints") -> Iterator[Decoded]:
        """Copy the inodes at ``places`` of a buffer; decode whenever there is no more room."""
        table = np.frombuffer(data, np.uint8).reshape(-1, self._size)
        # Slices of neighbours: picking rows by their places takes one copy more.
        ends = np.append(np.flatnonzero(np.diff(places) != 1) + 1, len(places)).tolist()
        at = 0
        for end in ends if len(places) else ():
            while at < end:
                count = min(end - at, len(self._text) - self._count)
                rows, first = slice(self._count, self._count + count), int(places[at])
                self._text[rows, : self._size] = table[first : first + count]
                self._numbers[rows] = numbers[at : at + count]
                self._count += count
                at += count
                if self._count == len(self._text):
                    yield self._decode()

    def _decode(self) -> Decoded:
        """Decode the inodes that were copied."""
        text, numbers = self._text[: self._count], self._numbers[: self._count].copy()
        cores = text.view(self._dtype).reshape(-1)
        odd = ~self._verify(numbers, text, cores)
        extents = self._extents(numbers, text, cores, odd)
        rows = np.flatnonzero(odd).tolist()
        raws = [text[row, : self._size].tobytes() for row in rows]
        others = list(zip(numbers[rows].tolist(), raws, strict=True))
        stray, done = self._stray, self._done
        self._count = self._done = 0
        self._stray = []
        return Decoded(extents, others, stray, done)

    def _verify(
        self, numbers: "Ints", text: "NDArray[np.uint8]", cores: "NDArray[np.void]"
    ) -> "Bools":
        """Return which inodes have no fault, as `InodeTable.fault`."""
        right: Bools = cores["magic"] == XFS_DINODE_MAGIC
        right &= cores["version"] == XFS_DINODE_VERSION_3
        right &= cores["ino"].astype(np.int64) == numbers
        uuid = cores["uuid"]
        right &= (uuid[:, 0] == self._uuid[0]) & (uuid[:, 1] == self._uuid[1])
        stored = text[:, XFS_DINODE_CRC_OFF:_CRC_END].copy()
        begin = text[:, :4]
        text[:, self._size : self._size + 4] = ~stored
        text[:, XFS_DINODE_CRC_OFF:_CRC_END] = 0
        np.invert(begin, out=begin)
        right &= keep_zero(text)
        np.invert(begin, out=begin)
        text[:, XFS_DINODE_CRC_OFF:_CRC_END] = stored
        return right

    def _extents(
        self,
        numbers: "Ints",
        text: "NDArray[np.uint8]",
        cores: "NDArray[np.void]",
        odd: "Bools",
    ) -> ExtentArrays:
        """Return the extents of plain inodes; mark as ``odd`` those that are not plain."""
        kinds = cores["mode"] & 0xF000
        whats = np.full(len(numbers), FILE_DATA, np.int64)
        whats[kinds == stat.S_IFDIR] = DIRECTORY
        whats[kinds == stat.S_IFLNK] = SYMLINK
        is_wide = cores["flags2"] & np.uint64(XFS_DIFLAG2_NREXT64) != 0
        narrow = cores["nextents"].astype(np.uint64)
        counts = np.where(is_wide, cores["big_nextents"], narrow)
        attributes = np.where(is_wide, narrow, cores["anextents"])
        rest = self._size - DINODE.size
        data_size = cores["forkoff"].astype(np.int64) * _WORD
        has_attr = data_size != 0
        data_size = np.minimum(data_size, rest)
        is_realtime = cores["flags"] & XFS_DIFLAG_REALTIME != 0
        total = np.zeros(len(numbers), np.int64)
        parts: list[ExtentArrays] = []
        begin = np.full(len(numbers), DINODE.size // _WORD)
        forks = (
            (DATA, whats, cores["format"], counts, begin, np.where(has_attr, data_size, rest)),
            (
                *(ATTR, np.full(len(numbers), XATTR), cores["aformat"]),
                *(attributes, begin + data_size // _WORD, rest - data_size),
            ),
        )
        words = text.view(">u8")
        for fork, holds, formats, extents, first, room in forks:
            is_there = has_attr if fork == ATTR else True
            mapped = (formats == XFS_DINODE_FMT_EXTENTS) & is_there
            without = (formats == XFS_DINODE_FMT_DEV) | (formats == XFS_DINODE_FMT_LOCAL)
            odd |= is_there & ~(mapped | without)
            odd |= mapped & (extents > (room // (_RECORD_WORDS * _WORD)).astype(np.uint64))
            left = np.where(mapped & ~odd, extents, 0).astype(np.int64)
            reached = np.zeros(len(numbers), np.int64)
            for place in range(int(left.max(initial=0))):
                rows = np.flatnonzero(left > place)
                at = first[rows] + place * _RECORD_WORDS
                high, low = (words[rows, at + word].astype(np.uint64) for word in (0, 1))
                offsets = (high >> np.uint64(9) & _OFFSET_BITS).astype(np.int64)
                lengths = (low & _COUNT_BITS).astype(np.int64)
                odd[rows[(offsets < reached[rows]) | (lengths == 0)]] = True
                reached[rows] = offsets + lengths
                total[rows] += lengths
                fsbno = (high & _HIGH_BITS) << np.uint64(43) | low >> np.uint64(21)
                marks = holds[rows] << 1 | np.where(high >> np.uint64(63), UNWRITTEN, 0)
                starts, wrong = self._blocks(fsbno.astype(np.int64), lengths)
                found = ExtentArrays(
                    *(starts, lengths, numbers[rows], np.full(len(rows), fork)), offsets, marks
                )
                if fork == DATA and is_realtime.any():
                    # The address is one of the realtime section.
                    here = ~is_realtime[rows]
                    wrong &= here
                    found = found.pick(here)
                odd[rows[wrong]] = True
                parts.append(found)
        odd |= total != cores["nblocks"].astype(np.int64)
        joined = ExtentArrays.join(parts)
        if odd.any():
            joined = joined.pick(~np.isin(joined.inodes, numbers[odd]))
        return joined

    def _blocks(self, fsbno: "Ints", lengths: "Ints") -> "tuple[Ints, Bools]":
        """Return the blocks of the device that extents begin at, and which cannot be."""
        sb = self.volume.sb
        groups, blocks = fsbno >> sb.agblklog, fsbno & ((1 << sb.agblklog) - 1)
        last = sb.agcount - 1
        limits = np.where(groups == last, self.volume.ag_blocks(last), sb.agblocks)
        wrong = (groups > last) | (blocks + lengths > limits)
        return groups * sb.agblocks + blocks, wrong


def _holes(chunks: Sequence[InobtRec]) -> "Bools":
    """Return which inodes the chunks lack."""
    if not any(chunk.holemask for chunk in chunks):
        return np.zeros((len(chunks), XFS_INODES_PER_CHUNK), np.bool_)
    masks = np.array([chunk.holemask for chunk in chunks], "<u2").view(np.uint8)
    bits = np.unpackbits(masks, bitorder="little").reshape(len(chunks), -1)
    return np.repeat(bits == 1, XFS_INODES_PER_HOLEMASK_BIT, axis=1)
