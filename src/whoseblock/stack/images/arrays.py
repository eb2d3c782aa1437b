"""Assemble arrays of Linux software RAID from their members."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import accumulate
from typing import NamedTuple

from whoseblock.errors import UnsupportedError
from whoseblock.media.base import Media
from whoseblock.media.mapped import Copy, MappedMedia, MappedRun
from whoseblock.stack.base import Layer, LinearSegment, UnmappedSegment
from whoseblock.stack.formats.md import LINEAR, MdSuperblock, compute_data_size, make_striping
from whoseblock.stack.members import MemberReader, MemberSegment, locate_runs

__all__ = ["ArrayMember", "build_array"]

#: A member that missed more updates than this is out of date.
_EVENTS_BEHIND = 1


class ArrayMember(NamedTuple):
    """A layer with a member of an array."""

    layer: Layer
    media: Media
    superblock: MdSuperblock


def build_array(members: Sequence[ArrayMember]) -> Iterator[tuple[Layer, Media]]:
    """Cut the members of one array into segments; yield the array's layer, if there is one."""
    newest = max(members, key=lambda member: member.superblock.events)
    superblock = newest.superblock
    name = f"md/{superblock.name or superblock.array.hex()[:8]}"
    by_role = {
        member.superblock.role: member
        for member in sorted(members, key=lambda member: member.superblock.events)
        if isinstance(member.superblock.role, int) and member.superblock.role < superblock.members
    }
    for member in members:
        member.layer.gap = f"md metadata of {name}"
        if member.superblock.role not in by_role:
            what = f"{member.superblock.role} member of {name}"
            member.layer.segments = [UnmappedSegment(0, member.layer.size, what)]
    try:
        layer, media = _assemble(
            name, superblock, [by_role.get(at) for at in range(superblock.members)]
        )
    except UnsupportedError as error:
        for member in members:
            what = f"part of {name}: {error}"
            member.layer.segments = [UnmappedSegment(0, member.layer.size, what, certain=False)]
        return
    yield layer, media


def _assemble(
    name: str, superblock: MdSuperblock, members: Sequence[ArrayMember | None]
) -> tuple[Layer, Media]:
    """Return the layer and the medium of an array; raises `UnsupportedError`."""
    if superblock.unsupported:
        raise UnsupportedError(superblock.unsupported)
    if superblock.level in (0, LINEAR) and None in members:
        missing = members.index(None)
        raise UnsupportedError(f"the member {missing} is missing, and so is its size")
    sizes = [compute_data_size(member.superblock if member else superblock) for member in members]
    readers = [_make_reader(member, number, superblock) for number, member in enumerate(members)]
    if superblock.level == LINEAR:
        starts = [0, *accumulate(sizes)]
        size = starts[-1]
        media = MappedMedia(name, size, partial(_locate_linear_runs, starts, readers))
    else:
        striping, size = make_striping(superblock.level, superblock.layout, superblock.chunk, sizes)
        media = MappedMedia(name, size, partial(locate_runs, striping, readers))
    if size <= 0:
        raise UnsupportedError("an array of size 0")
    layer = Layer(name, size, f"md {_level_name(superblock.level)}", open_media=lambda: media)
    for number, member in enumerate(members):
        if member is None:
            continue
        start = member.superblock.start
        if superblock.level == LINEAR:
            member.layer.segments = [LinearSegment(start, sizes[number], layer, starts[number])]
        else:
            member.layer.segments = [MemberSegment(start, sizes[number], layer, striping, number)]
    return layer, media


def _level_name(level: int) -> str:
    return "linear" if level == LINEAR else f"raid{level}"


def _make_reader(member: ArrayMember | None, number: int, superblock: MdSuperblock) -> MemberReader:
    """Return the reader of a member, without a medium if it is missing or out of date."""
    if member is None:
        return MemberReader(None, 0, f"member {number}")
    behind = superblock.events - member.superblock.events > _EVENTS_BEHIND
    if behind or member.superblock.recovering:
        return MemberReader(None, 0, f"{member.layer.name}, not up to date")
    return MemberReader(member.media, member.superblock.start, member.layer.name)


def _locate_linear_runs(
    starts: Sequence[int], readers: Sequence[MemberReader], offset: int, length: int
) -> Iterator[MappedRun]:
    """Yield the runs of a range of concatenated members."""
    end = offset + length
    for number, reader in enumerate(readers):
        low, high = max(offset, starts[number]), min(end, starts[number + 1])
        if low < high:
            at = reader.start + low - starts[number]
            yield MappedRun(high - low, (Copy(reader.media, at, reader.name),))
