"""Assemble arrays of Linux software RAID from their members."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import NamedTuple

from whoseblock.errors import UnsupportedError
from whoseblock.media.base import Media
from whoseblock.media.mapped import Copy, MappedMedia, MappedRun
from whoseblock.stack.base import Layer, LinearSegment, Segment, UnmappedSegment
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


def build_array(
    members: Sequence[ArrayMember], running: Iterable[MdSuperblock] = ()
) -> Iterator[tuple[Layer, Media]]:
    """Cut the members of one array into segments; yield the array's layer, if there is one.

    ``running`` are the superblocks of members that the kernel uses now.
    """
    known = [*(member.superblock for member in members), *running]
    newest = max(known, key=lambda superblock: superblock.events)
    name = f"md/{newest.name or newest.array.hex()[:8]}"
    current: list[ArrayMember] = []
    former: dict[int, str] = {}
    for member in members:
        member.layer.gap = f"md metadata of {name}"
        role = member.superblock.role
        if not isinstance(role, int):
            what = f"{role} member of {name}"
            member.layer.segments = [UnmappedSegment(0, member.layer.size, what)]
        elif why := _why_former(member.superblock, newest):
            what = f"former member of {name}: {why}"
            member.layer.segments = [UnmappedSegment(0, member.layer.size, what, certain=False)]
            former[role] = f"{member.layer.name}, not up to date"
        else:
            current.append(member)
    if not current:
        return
    try:
        array = _Array(name, newest, current, former)
    except UnsupportedError as error:
        for member in current:
            what = f"part of {name}: {error}"
            member.layer.segments = [UnmappedSegment(0, member.layer.size, what, certain=False)]
        return
    if missing := _find_missing(newest, current):
        doubt = f"{name}: without its members {', '.join(map(str, missing))}"
        doubt += " these may be out of date; name the others with --member"
        array.layer.doubts += (doubt,)
    yield array.layer, array.media


def _why_former(member: MdSuperblock, newest: MdSuperblock) -> str:
    """Return why a member is not a part of its array any more, "" if it is."""
    behind = newest.events - member.events
    if behind > _EVENTS_BEHIND:
        return f"it has {member.events} events, others have {newest.events}"
    if member.number < len(newest.roles) and newest.roles[member.number] != member.role:
        role = newest.roles[member.number]
        return f"it is member {member.role} by its own superblock, by others it is {role}"
    return ""


#: Missing members that are named in a note.
_MAX_NAMED = 8


def _find_missing(newest: MdSuperblock, current: Sequence[ArrayMember]) -> list[int]:
    """Return the roles of missing members that may have gone on without the present ones.

    An array runs without members that its redundancy makes up for. So if the present members are
    few, the missing ones may have left them behind, which only their superblocks record.
    """
    present = {member.superblock.role for member in current}
    missing = sorted(
        {role for role in newest.roles if isinstance(role, int) and role < newest.members} - present
    )
    needed = {1: 1, 4: newest.members - 1, 5: newest.members - 1, 6: newest.members - 2}
    copies = max(newest.layout & 0xFF, 1) * max(newest.layout >> 8 & 0xFF, 1)
    enough = needed.get(newest.level, -(-newest.members // copies))
    return missing[:_MAX_NAMED] if len(missing) >= enough else []


class _Array:
    """The layer and the medium of an array; raises `UnsupportedError`."""

    def __init__(
        self,
        name: str,
        superblock: MdSuperblock,
        members: Sequence[ArrayMember],
        former: Mapping[int, str],
    ) -> None:
        _check(superblock, members)
        by_role: dict[int | str, ArrayMember] = {}
        # Of two members with one role, the one that is replaced is a member until the end.
        for member in sorted(members, key=lambda one: not one.superblock.is_replacement):
            by_role[member.superblock.role] = member
        sizes = []
        readers = []
        for number in range(superblock.members):
            one = by_role.get(number)
            sizes.append(compute_data_size(one.superblock if one else superblock))
            readers.append(_make_reader(one, former.get(number, f"member {number}")))
        if superblock.level == LINEAR:
            starts = [0, *accumulate(sizes)]
            size = starts[-1]
            self.media = MappedMedia(name, size, partial(_locate_linear_runs, starts, readers))
        else:
            striping, size = make_striping(
                superblock.level, superblock.layout, superblock.chunk, sizes
            )
            self.media = MappedMedia(name, size, partial(locate_runs, striping, readers))
        if size <= 0:
            raise UnsupportedError("an array of size 0")
        media = self.media
        kind = f"md {_level_name(superblock.level)}"
        self.layer = Layer(name, size, kind, open_media=lambda: media)
        for member in members:
            start, number = member.superblock.start, int(member.superblock.role)
            length = sizes[number]
            if member.superblock.recovering:
                length = min(member.superblock.recovered, length)
            segment: Segment
            if superblock.level == LINEAR:
                segment = LinearSegment(start, length, self.layer, starts[number])
            else:
                segment = MemberSegment(start, length, self.layer, striping, number)
            segments: list[Segment] = [segment] if length else []
            if length < sizes[number]:
                what = f"part of {name}: the member {number} has not been rebuilt here yet"
                rest = sizes[number] - length
                segments.append(UnmappedSegment(start + length, rest, what, certain=False))
            member.layer.segments = segments


def _check(superblock: MdSuperblock, members: Sequence[ArrayMember]) -> None:
    """Raise `UnsupportedError` unless the members form an array that is followed."""
    for one in (superblock, *(member.superblock for member in members)):
        if one.unsupported:
            raise UnsupportedError(one.unsupported)
    roles = {member.superblock.role for member in members}
    if any(isinstance(role, int) and role >= superblock.members for role in roles):
        raise UnsupportedError("a member has a number that the array does not have")
    if superblock.level in (0, LINEAR):
        for number in range(superblock.members):
            if number not in roles:
                raise UnsupportedError(f"the member {number} is missing, and so is its size")
    plain = [member.superblock.role for member in members if not member.superblock.is_replacement]
    if len(plain) != len(set(plain)):
        raise UnsupportedError("two of its members have the same number: is one a copy?")


def _level_name(level: int) -> str:
    return "linear" if level == LINEAR else f"raid{level}"


def _make_reader(member: ArrayMember | None, name: str) -> MemberReader:
    """Return the reader of a member, without a medium if it is missing or out of date."""
    if member is None:
        return MemberReader(None, 0, name)
    if member.superblock.recovering:
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
