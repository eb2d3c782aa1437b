"""Arrays of Linux software RAID, put together from their members."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import accumulate
from typing import NamedTuple

from whoseblock.errors import UnsupportedError
from whoseblock.media.base import Media
from whoseblock.media.mapped import Copy, MappedMedia, Part
from whoseblock.stack.base import Ending, Layer, Linear
from whoseblock.stack.md import LINEAR, MdMember, data_size, striping_of
from whoseblock.stack.raid import Member, MemberSegment, locate

__all__ = ["ArrayMember", "build_array"]

#: A member that missed more than the last update is not the others' equal.
_EVENTS_BEHIND = 1


class ArrayMember(NamedTuple):
    """A layer that holds a member of an array."""

    layer: Layer
    media: Media
    about: MdMember


def build_array(members: Sequence[ArrayMember]) -> Iterator[tuple[Layer, Media]]:
    """Cut the members of one array into segments; give the array's layer, if there is one."""
    newest = max(members, key=lambda member: member.about.events)
    about = newest.about
    name = f"md/{about.name or about.array.hex()[:8]}"
    by_role = {
        member.about.role: member
        for member in sorted(members, key=lambda member: member.about.events)
        if isinstance(member.about.role, int) and member.about.role < about.members
    }
    for member in members:
        member.layer.gap = f"md metadata of {name}"
        if member.about.role not in by_role:
            what = f"{member.about.role} member of {name}"
            member.layer.segments = [Ending(0, member.layer.size, what)]
    try:
        layer, media = _assemble(name, about, [by_role.get(at) for at in range(about.members)])
    except UnsupportedError as error:
        for member in members:
            what = f"part of {name}: {error}"
            member.layer.segments = [Ending(0, member.layer.size, what, certain=False)]
        return
    yield layer, media


def _assemble(
    name: str, about: MdMember, members: Sequence[ArrayMember | None]
) -> tuple[Layer, Media]:
    """Make the layer of an array; raises `UnsupportedError`."""
    if about.unsettled:
        raise UnsupportedError(about.unsettled)
    if about.level in (0, LINEAR) and None in members:
        missing = members.index(None)
        raise UnsupportedError(f"its member {missing} is missing, and with it the size of a part")
    sizes = [data_size(member.about if member else about) for member in members]
    readers = [_reader(member, number, about) for number, member in enumerate(members)]
    if about.level == LINEAR:
        starts = [0, *accumulate(sizes)]
        size = starts[-1]
        media = MappedMedia(name, size, partial(_linear, starts, readers))
    else:
        striping, size = striping_of(about.level, about.layout, about.chunk, sizes)
        media = MappedMedia(name, size, partial(locate, striping, readers))
    if size <= 0:
        raise UnsupportedError("an array without room")
    layer = Layer(name, size, f"md {_level(about.level)}", open_media=lambda: media)
    for number, member in enumerate(members):
        if member is None:
            continue
        start = member.about.start
        if about.level == LINEAR:
            member.layer.segments = [Linear(start, sizes[number], layer, starts[number])]
        else:
            member.layer.segments = [MemberSegment(start, sizes[number], layer, striping, number)]
    return layer, media


def _level(level: int) -> str:
    return "linear" if level == LINEAR else f"raid{level}"


def _reader(member: ArrayMember | None, number: int, about: MdMember) -> Member:
    """Say how a member is read; not at all if it is missing, behind, or being rebuilt."""
    if member is None:
        return Member(None, 0, f"member {number}")
    behind = about.events - member.about.events > _EVENTS_BEHIND
    if behind or member.about.recovering:
        return Member(None, 0, f"{member.layer.name}, not up to date")
    return Member(member.media, member.about.start, member.layer.name)


def _linear(
    starts: Sequence[int], readers: Sequence[Member], offset: int, length: int
) -> Iterator[Part]:
    """Give the parts of a range of members that follow one another."""
    end = offset + length
    for number, reader in enumerate(readers):
        low, high = max(offset, starts[number]), min(end, starts[number + 1])
        if low < high:
            place = reader.start + low - starts[number]
            yield Part(high - low, (Copy(reader.media, place, reader.name),))
