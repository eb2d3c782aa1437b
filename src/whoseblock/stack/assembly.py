"""Disks and images put together offline: partitions, arrays and volume groups, from what they hold.

Every medium at hand is added; `Assembly.finish` then looks into each, and into whatever it finds
there, until nothing new is found.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final, NamedTuple

from whoseblock.media.base import Media
from whoseblock.media.mapped import Copy, MappedMedia, Part
from whoseblock.stack.arrays import ArrayMember, build_array
from whoseblock.stack.base import Ending, Layer, Linear, Segment
from whoseblock.stack.lvm import read_physical_volume
from whoseblock.stack.md import RESERVED_0_90, MdMember, read_member
from whoseblock.stack.partitions import Table, read_partitions
from whoseblock.stack.volumes import GroupPart, build_group, layers_by_group

__all__ = ["Assembly", "partition_name", "slice_of", "with_structures"]

#: More layers than any machine has; a disk full of tables within tables could have more.
_MOST_LAYERS: Final = 10_000


class _Found(NamedTuple):
    """A layer that was found, and how it is read."""

    layer: Layer
    media: Media


class Assembly:
    """Layers over the media at hand.

    ``is_filesystem`` tells whether a medium holds a filesystem itself, and is to be looked into no
    further.
    """

    def __init__(self, is_filesystem: Callable[[Media], bool]) -> None:
        self._is_filesystem = is_filesystem
        self._todo: list[_Found] = []
        self._count = 0
        self._members: dict[bytes, list[ArrayMember]] = defaultdict(list)
        self._parts: list[GroupPart] = []
        #: The layers that hold the members of one array, or of one volume group.
        self.sets: list[list[Layer]] = []

    def add(self, layer: Layer, media: Media) -> None:
        """Have a layer looked into, of which nothing is known to be made."""
        if self._count < _MOST_LAYERS:
            self._count += 1
            self._todo.append(_Found(layer, media))

    def finish(self) -> None:
        """Look into all that was added, and into all that is found there."""
        while self._todo:
            while self._todo:
                self._look_into(*self._todo.pop())
            # Only when all members have been seen can an array be put together, and only then can
            # physical volumes be found on it.
            members, self._members = self._members, defaultdict(list)
            for same in members.values():
                self.sets.append([one.layer for one in same])
                self._add_all(build_array(same))
            if not self._todo:
                parts, self._parts = self._parts, []
                self.sets += layers_by_group(parts)
                self._add_all(build_group(parts))

    def _add_all(self, found: Iterable[tuple[Layer, Media]]) -> None:
        for layer, media in found:
            self.add(layer, media)

    def _look_into(self, layer: Layer, media: Media) -> None:
        # md first: a member that has its superblock at its end begins like the array does.
        table = read_partitions(media)
        member = read_member(media)
        if member and not (table and _may_be_of_the_last(member, table, media.size)):
            self._members[member.array].append(ArrayMember(layer, media, member))
        elif self._is_filesystem(media):
            return
        elif table and not table.doubts:
            # What makes a physical volume wipes a table; what writes a table may leave a label.
            self._add_partitions(layer, media, table)
        elif volume := read_physical_volume(media):
            self._parts.append(GroupPart(layer, media, volume))
        elif table:
            self._add_partitions(layer, media, table)

    def _add_partitions(self, layer: Layer, media: Media, table: Table) -> None:
        layer.remarks += tuple(f"{layer.name}: {note}" for note in table.notes)
        layer.doubts += tuple(f"{layer.name}: {doubt}" for doubt in table.doubts)
        segments: list[Segment] = [Ending(*structure) for structure in table.structures]
        for partition in table.partitions:
            name = partition_name(layer.name, partition.number)
            part = slice_of(name, media, partition.start, partition.length)
            below = Layer(name, partition.length, "partition", open_media=partial(_same, part))
            segments.append(Linear(partition.start, partition.length, below, what=partition.name))
            self.add(below, part)
        layer.segments = segments


def _may_be_of_the_last(member: MdMember, table: Table, size: int) -> bool:
    """Tell whether a superblock at the end of a disk is that of the disk's last partition.

    One of version 0.90 does not say where the device that it is of begins.
    """
    end = max((part.start + part.length for part in table.partitions), default=0)
    return member.nameless and size - end < RESERVED_0_90


def _same(media: Media) -> Media:
    return media


def with_structures(segments: Sequence[Segment], table: Table) -> list[Segment]:
    """Add the table's own places to the partitions that the kernel knows.

    Only if these are the table's: it may have been changed since the kernel read it.  An extended
    partition, which the kernel shows as one of two sectors, gives way to its boot records.
    """
    known = {(part.start, part.length) for part in table.partitions}
    ours = [segment for segment in segments if (segment.start, segment.length) in known]
    if len(ours) != len(known):
        return list(segments)
    return [*ours, *(Ending(*structure) for structure in table.structures)]


def partition_name(disk: str, number: int) -> str:
    """Name a partition as the kernel does: a ``p`` keeps two numbers apart."""
    return f"{disk}{'p' if disk[-1:].isdecimal() else ''}{number}"


def slice_of(name: str, media: Media, start: int, length: int) -> Media:
    """Give ``length`` bytes from ``start`` of a medium as one of its own."""

    def locate(offset: int, size: int) -> Iterable[Part]:
        return (Part(size, (Copy(media, start + offset),)),)

    return MappedMedia(name, min(length, max(media.size - start, 0)), locate)
