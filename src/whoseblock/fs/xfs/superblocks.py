"""Finding the superblock that a filesystem can be opened with, and checking it against its copies.

The first superblock counts, and each allocation group has a copy.  Two things can be wrong with
one that verifies.  It may be *stale*: the filesystem was grown or shrunk since, and the write to
this sector was lost.  Then the copy of the last group and the headers at the end disagree with it.
And a copy may belong to a *former* filesystem of the device: mkfs.xfs overwrites only where it puts
groups itself.  Then the headers of the groups that it implies have another UUID.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final, NamedTuple

from whoseblock.errors import BlockError, CorruptError, NotAFilesystemError, UnsupportedError
from whoseblock.fs.xfs.format.ag import (
    AGF,
    AGI,
    XFS_AGF_CRC_OFF,
    XFS_AGF_MAGIC,
    XFS_AGI_CRC_OFF,
    XFS_AGI_MAGIC,
    Agf,
    Agi,
)
from whoseblock.fs.xfs.format.checksum import crc_matches
from whoseblock.fs.xfs.format.superblock import (
    NULLFSINO,
    SUPERBLOCK,
    XFS_SB_MAGIC,
    XFS_SB_VERSION_5,
    Superblock,
    parse_superblock,
)
from whoseblock.fs.xfs.inodes import InodeTable
from whoseblock.fs.xfs.volume import DADDR, DisputedEnd, Volume
from whoseblock.media.base import Media, next_data

__all__ = ["FoundSuperblock", "begins_with_superblock", "open_superblock"]

_LARGEST_SECTOR: Final = 32 * 1024
_SECTOR_SIZES: Final = tuple(DADDR << shift for shift in range(7))
#: How mkfs.xfs may have divided a device whose first superblock is lost.
_COMMON_BLOCK_SIZES: Final = (4096, 1024, 2048, 8192, 16384, 32768, 65536)
_BLOCK_SIZES: Final = (*_COMMON_BLOCK_SIZES, 512)
_MOST_LIKELY_GROUPS: Final = 64
#: How much of the device is searched if it was none of these, and in which steps.
_SEARCH_LIMIT: Final = 16 << 30
_SEARCH_STEP: Final = 1 << 20
#: A device of at most this size is searched at once: that takes fewer reads than likely places.
_SMALL: Final = 64 << 20
#: How many places that begin like a superblock are looked at, and how many filesystems compared.
_MOST_TRIED: Final = 1 << 16
_MOST_CANDIDATES: Final = 64
#: In how many groups the headers are compared with a copy.
_GROUPS_COMPARED: Final = 16
#: How often the end may move before the headers at it agree.
_MOST_MOVES: Final = 8
_NO_CONTENT_HINT: Final = (
    "see what it is with blkid or file; name the device or image on which the filesystem, or the"
    " partition table, begins at byte 0"
)
_MAGIC_BYTES = XFS_SB_MAGIC.to_bytes(4, "big")


class FoundSuperblock(NamedTuple):
    """The superblock to use; ``notes`` make every answer incomplete.

    ``disputed`` is what lies past the end that is used, if some headers say that the filesystem
    is larger.
    """

    sb: Superblock
    notes: tuple[str, ...] = ()
    disputed: DisputedEnd | None = None


class _Headers(NamedTuple):
    """Of the superblock, AGF and AGI of one group those that verify."""

    copy: Superblock | None = None
    agf: Agf | None = None
    agi: Agi | None = None


class _Candidate(NamedTuple):
    """A copy of a superblock, the byte it stands at, and how many headers confirm it.

    ``created`` is when the root directory was made, in nanoseconds since 1970; 0 if it is lost.
    """

    sb: Superblock
    start: int
    confirmed: int = 0
    compared: int = 0
    created: int = 0


def _read_superblock(media: Media, start: int) -> Superblock:
    """Read and verify the superblock at ``start``: its sector, and no byte more."""
    return _verified(media, start, media.pread(start, min(DADDR, media.size - start)))


def _verified(media: Media, start: int, head: bytes) -> Superblock:
    """Verify the superblock at ``start``, which begins with ``head``; raises `BlockError`."""
    sector_size = SUPERBLOCK.unpack_from(head).sectsize if len(head) == DADDR else 0
    if DADDR < sector_size <= _LARGEST_SECTOR:
        head = media.pread(start, min(sector_size, media.size - start))
    return parse_superblock(head, start)


def begins_with_superblock(media: Media) -> bool:
    """Return whether a superblock that verifies is where the first one belongs."""
    try:
        _read_superblock(media, 0)
    except BlockError:
        return False
    return True


def open_superblock(media: Media) -> FoundSuperblock:
    """Find the superblock of ``media``, a copy if the first one is lost.

    Raises `NotAFilesystemError` where there is none, and `UnsupportedError` for features that
    forbid reading to those who do not know them.
    """
    notes: list[str] = []
    head = b""
    try:
        head = media.pread(0, min(DADDR, media.size))
        sb = _verified(media, 0, head)
    except BlockError as error:
        first = str(error)
        copy = _find_copy(media) if _may_be_xfs(head) else None
        if copy is None:
            raise NotAFilesystemError(
                f"no XFS filesystem on {media.name!r}", reason=first, hint=_NO_CONTENT_HINT
            ) from error
        sb = copy.sb
        notes.append(
            f"{first}; the copy of the superblock at byte {copy.start} was used in its place"
        )
        if copy.confirmed < copy.compared:
            notes.append(
                f"the copy of the superblock at byte {copy.start} may be of a former filesystem:"
                f" {copy.confirmed} of {copy.compared} headers of allocation groups confirm it"
            )
    if unsupported := sb.unsupported:
        raise UnsupportedError(f"{media.name!r} is XFS with {unsupported}, which is not read")
    if not sb.has_crc:
        return FoundSuperblock(sb, tuple(notes))
    if sb.unknown_incompat:
        raise UnsupportedError(
            f"{media.name!r} is XFS with features that this whoseblock does not know"
            f" (incompat {sb.unknown_incompat:#x})",
            hint="a newer whoseblock may know them",
        )
    found = _compare_end(media, sb)
    return found._replace(notes=(*notes, *found.notes))


# ---------------------------------------------------------------------- headers of a group


def _read_sectors(media: Media, start: int, size: int, count: int) -> list[bytes]:
    """Read sectors, in one read if all are readable; one that is not is empty."""
    if start + size * count > media.size:
        return [b""] * count
    try:
        raw = media.pread(start, size * count)
    except BlockError:
        sectors = []
        for index in range(count):
            try:
                sectors.append(media.pread(start + index * size, size))
            except BlockError:
                sectors.append(b"")
        return sectors
    return [raw[at : at + size] for at in range(0, size * count, size)]


def _agf_of(sector: bytes) -> Agf | None:
    """Decode an AGF; None if its magic number or checksum is wrong."""
    if len(sector) < AGF.size or not crc_matches(sector, XFS_AGF_CRC_OFF):
        return None
    agf: Agf = AGF.unpack_from(sector)
    return agf if agf.magicnum == XFS_AGF_MAGIC else None


def _agi_of(sector: bytes) -> Agi | None:
    """Decode an AGI; None if its magic number or checksum is wrong."""
    if len(sector) < AGI.size or not crc_matches(sector, XFS_AGI_CRC_OFF):
        return None
    agi: Agi = AGI.unpack_from(sector)
    return agi if agi.magicnum == XFS_AGI_MAGIC else None


def _read_headers(media: Media, sb: Superblock, agno: int) -> _Headers:
    """Read the headers of a group as far as they verify and belong to the filesystem of ``sb``."""
    start = agno * sb.agblocks * sb.blocksize
    first, second, third = _read_sectors(media, start, sb.sectsize, 3)
    copy: Superblock | None = None
    try:
        copy = parse_superblock(first, start)
    except CorruptError:
        pass
    else:
        if not _same_filesystem(copy, sb):
            copy = None
    agf, agi = _agf_of(second), _agi_of(third)
    if agf is not None and (agf.uuid, agf.seqno) != (sb.metadata_uuid, agno):
        agf = None
    if agi is not None and (agi.uuid, agi.seqno) != (sb.metadata_uuid, agno):
        agi = None
    return _Headers(copy, agf, agi)


def _same_filesystem(one: Superblock, other: Superblock) -> bool:
    """Return whether two superblocks differ in no more than what growing and renaming change."""
    return (one.metadata_uuid, one.blocksize, one.agblocks, one.sectsize, one.version) == (
        other.metadata_uuid,
        other.blocksize,
        other.agblocks,
        other.sectsize,
        other.version,
    )


# ---------------------------------------------------------------------- the end


def _compare_end(media: Media, sb: Superblock) -> FoundSuperblock:
    """Compare where a superblock says that the filesystem ends with the headers there.

    A larger or smaller size is used if the copy of the last group and the AGF of the last group
    of that size agree on it.  What only one of them claims is disputed.
    """
    claimed = sb
    for _ in range(_MOST_MOVES):
        last = _read_headers(media, sb, sb.agcount - 1)
        after = _read_headers(media, sb, sb.agcount)
        moved = _confirmed_size(media, sb, last, after)
        if moved is None:
            break
        sb = sb._replace(dblocks=moved.dblocks, agcount=moved.agcount)
    notes: tuple[str, ...] = ()
    end = sb.dblocks * sb.blocksize
    larger = max(_claimed_blocks(sb, last, after), claimed.dblocks) * sb.blocksize
    if sb.dblocks != claimed.dblocks:
        said = claimed.dblocks * sb.blocksize
        note = (
            f"the superblock says that the filesystem has {said} bytes, its copies and the headers"
            f" of the allocation groups {end}: the superblock is older than they are, as other"
            " metadata may be"
        )
        notes = (note,)
    if larger <= end:
        return FoundSuperblock(sb, notes)
    note = (
        f"the superblock says that the filesystem ends at byte {end}, headers of its allocation"
        f" groups that it ends at byte {larger}: whose the bytes between are is not known"
    )
    return FoundSuperblock(sb, notes, DisputedEnd(larger, note))


def _last_length(sb: Superblock) -> int:
    """Return the length of the last group in blocks."""
    return sb.dblocks - (sb.agcount - 1) * sb.agblocks


def _confirmed_size(
    media: Media, sb: Superblock, last: _Headers, after: _Headers
) -> Superblock | None:
    """Return the copy with another size than ``sb`` that the headers confirm, if any."""
    copies = [copy for copy in (last.copy, after.copy) if copy is not None]
    larger = max(copies, key=lambda copy: copy.dblocks, default=sb)
    if larger.dblocks > sb.dblocks:
        # In the only group the copy is the superblock itself.
        agreed = sb.agcount == 1 or last.copy is None or last.copy.dblocks > sb.dblocks
        at_end = _read_headers(media, larger, larger.agcount - 1).agf
        if agreed and at_end is not None and at_end.length == _last_length(larger):
            return larger
        return None
    smaller = last.copy
    if smaller is None or smaller.dblocks == sb.dblocks or smaller.agcount != sb.agcount:
        return None
    if last.agf is not None and last.agf.length == _last_length(smaller):
        return smaller
    return None


def _claimed_blocks(sb: Superblock, last: _Headers, after: _Headers) -> int:
    """Return the largest number of blocks that any header near the end claims."""
    before, whole = (sb.agcount - 1) * sb.agblocks, sb.agcount * sb.agblocks
    claims = [sb.dblocks]
    claims += [copy.dblocks for copy in (last.copy, after.copy) if copy is not None]
    claims += [
        before + min(header.length, sb.agblocks)
        for header in (last.agf, last.agi)
        if header is not None
    ]
    claims += [
        whole + min(header.length, sb.agblocks)
        for header in (after.agf, after.agi)
        if header is not None
    ]
    return max(claims)


# ---------------------------------------------------------------------- copies


def _may_be_xfs(head: bytes) -> bool:
    """Return whether a search is worth it: the device begins like XFS, or its beginning is lost.

    A rescued image has zeros where nothing could be read; ``head`` is empty if it cannot be read.
    """
    return head.startswith(_MAGIC_BYTES) or not any(head)


def _find_copy(media: Media) -> _Candidate | None:
    """Search for the copy of a later group that the headers of the groups confirm best.

    The headers of the first group, if they are intact, tell the UUID and how long a group is.
    Without them the copies where mkfs.xfs would have put them are compared, and the device is
    searched only if all headers confirm none of those.
    """
    if next_data(media, 0) >= media.size:
        return None
    uuid, length = _first_group(media)
    known: dict[tuple[object, ...], _Candidate] = {}
    implied = [length * size for size in _BLOCK_SIZES] if length else []
    best: _Candidate | None = None
    likely = () if media.size <= _SMALL else _likely_copies(media.size)
    for starts in (implied, likely, _possible_copies(media)):
        for candidate in _candidates(media, starts, known):
            if candidate.sb.metadata_uuid == uuid:
                # What is damaged elsewhere is no reason for doubt.
                return candidate._replace(confirmed=candidate.compared)
        best = max(known.values(), key=_rank, default=None)
        if uuid is None and best is not None and best.confirmed == best.compared:
            break
    if best is not None and uuid is not None:
        return best._replace(compared=best.compared + 2)
    return best


def _rank(candidate: _Candidate) -> tuple[float, int, int]:
    share = candidate.confirmed / candidate.compared
    return share, candidate.created, candidate.confirmed


def _first_group(media: Media) -> tuple[bytes | None, int]:
    """Return the UUID and the blocks of the first group, by its AGF or AGI; None and 0 without."""
    for size in _SECTOR_SIZES:
        second, third = _read_sectors(media, size, size, 2)
        for header in (_agf_of(second), _agi_of(third)):
            if header is not None and header.seqno == 0:
                return header.uuid, header.length
    return None, 0


def _candidates(
    media: Media, starts: Iterable[int], known: dict[tuple[object, ...], _Candidate]
) -> Iterator[_Candidate]:
    """Yield the filesystems of which a copy is at one of ``starts``, each only once."""
    for start in starts:
        try:
            sb = _read_copy(media, start)
        except BlockError:
            continue
        key = (sb.metadata_uuid, sb.blocksize, sb.agblocks, sb.sectsize)
        if key in known or len(known) >= _MOST_CANDIDATES:
            continue
        known[key] = _compared(media, sb, start)
        yield known[key]


def _compared(media: Media, sb: Superblock, start: int) -> _Candidate:
    """Count the headers that confirm a copy, in groups spread over the filesystem.

    Those of the first group are left out: had they been readable, they would have decided.  But
    its root directory counts.
    """
    best = _best_copy(media, _Candidate(sb, start))
    later = range(1, sb.agcount)
    step = -(-len(later) // _GROUPS_COMPARED)
    created = _root_created(media, best.sb)
    confirmed, compared = int(created > 0), 1
    for agno in later[::step]:
        headers = _read_headers(media, sb, agno)
        confirmed += (headers.agf is not None) + (headers.agi is not None)
        compared += 2
    return best._replace(confirmed=confirmed, compared=compared, created=created)


def _root_created(media: Media, sb: Superblock) -> int:
    """Return when the root directory of a filesystem was made; 0 if it does not verify."""
    volume = Volume(media, sb)
    try:
        core = InodeTable(volume).get(sb.rootino).core
    except BlockError:
        return 0
    return max(core.time_ns(core.raw_crtime), 1)


def _read_copy(media: Media, start: int) -> Superblock:
    """Read a copy of the superblock; raises `BlockError` if it is none for where it stands."""
    if start >= media.size:
        raise CorruptError("copy of the superblock", start, "past the end of the device")
    sb = _read_superblock(media, start)
    agno, rest = divmod(start, sb.agblocks * sb.blocksize)
    if rest or not 0 < agno < sb.agcount or sb.version != XFS_SB_VERSION_5:
        raise CorruptError("copy of the superblock", start, "of another place")
    # mkfs.xfs leaves this set in the copies.
    return sb._replace(inprogress=0)


def _best_copy(media: Media, candidate: _Candidate) -> _Candidate:
    """Prefer a copy that knows the root directory.

    mkfs.xfs tells only those of the last and of the middle group.
    """
    sb = candidate.sb
    for agno in (sb.agcount - 1, (sb.agcount - 1) // 2):
        at = agno * sb.agblocks * sb.blocksize
        try:
            copy = _read_copy(media, at)
        except BlockError:
            continue
        if _same_filesystem(copy, sb) and copy.rootino != NULLFSINO:
            return candidate._replace(sb=copy, start=at)
    return candidate


def _likely_copies(size: int) -> Iterator[int]:
    """Yield the likely starts of the second group: mkfs.xfs divides the device evenly."""
    for block_size in _COMMON_BLOCK_SIZES:
        blocks = size // block_size
        for groups in range(2, _MOST_LIKELY_GROUPS + 1):
            if start := -(-blocks // groups) * block_size:
                yield start


def _possible_copies(media: Media) -> Iterator[int]:
    """Return the sectors near the start of the device that begin like a superblock."""
    return islice(_sectors_with_magic(media), _MOST_TRIED)


def _sectors_with_magic(media: Media) -> Iterator[int]:
    end = min(media.size, _SEARCH_LIMIT)
    following = 0
    while following < end:
        base = max(following, next_data(media, following) // DADDR * DADDR)
        following = base + _SEARCH_STEP
        if base >= end:
            break
        try:
            chunk = media.pread(base, min(_SEARCH_STEP, media.size - base))
        except BlockError:
            continue
        # The first byte of each sector: almost no sector begins like a superblock.
        first = chunk[::DADDR]
        index = first.find(_MAGIC_BYTES[:1])
        while index >= 0:
            if chunk.startswith(_MAGIC_BYTES, index * DADDR):
                yield base + index * DADDR
            index = first.find(_MAGIC_BYTES[:1], index + 1)
