"""Assemble disks and images offline: find partitions, arrays and volume groups by their content.

Add every available medium; `Assembly.finish` then examines each of them, and each layer that it
finds there, until it finds nothing new.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from whoseblock.media.base import Media
from whoseblock.media.mapped import Copy, MappedMedia, MappedRun
from whoseblock.stack.base import Layer, LinearSegment, Segment, UnmappedSegment
from whoseblock.stack.formats.md import RESERVED_0_90, MdSuperblock, read_md_superblock
from whoseblock.stack.formats.partitions import PartitionTable, read_partition_table

if TYPE_CHECKING:
    from whoseblock.stack.images.arrays import ArrayMember
    from whoseblock.stack.images.volumes import PhysicalVolumeLayer

__all__ = ["Assembly", "add_table_structures", "make_slice", "partition_name"]

#: Limit on the number of layers; nested tables on a hostile disk could define more.
_MAX_LAYERS: Final = 10_000


class _FoundLayer(NamedTuple):
    """A layer to examine, and its medium."""

    layer: Layer
    media: Media


class Assembly:
    """Builds layers over the available media.

    ``is_filesystem`` returns whether a filesystem begins on a medium; such a medium is not examined
    further.
    """

    def __init__(self, is_filesystem: Callable[[Media], bool]) -> None:
        self._is_filesystem = is_filesystem
        self._queue: list[_FoundLayer] = []
        self._count = 0
        self._members: dict[bytes, list[ArrayMember]] = defaultdict(list)
        self._parts: list[PhysicalVolumeLayer] = []
        #: For each array and volume group, the layers of its members.
        self.sets: list[list[Layer]] = []

    def add(self, layer: Layer, media: Media) -> None:
        """Add a layer of unknown content to be examined."""
        if self._count < _MAX_LAYERS:
            self._count += 1
            self._queue.append(_FoundLayer(layer, media))

    def finish(self) -> None:
        """Examine all added layers, and all layers found on them."""
        while self._queue:
            while self._queue:
                self._examine(*self._queue.pop())
            # An array can be assembled only after all of its members have been found, and only then
            # can it be searched for physical volumes.
            members, self._members = self._members, defaultdict(list)
            for same in members.values():
                self._add_array(same)
            if self._parts and not self._queue:
                parts, self._parts = self._parts, []
                self._add_groups(parts)

    # The modules below are imported only for what was found: most images are a filesystem.

    def _add_array(self, members: "Sequence[ArrayMember]") -> None:
        from whoseblock.stack.images.arrays import build_array

        self.sets.append([one.layer for one in members])
        self._add_all(build_array(members))

    def _add_groups(self, parts: "list[PhysicalVolumeLayer]") -> None:
        from whoseblock.stack.images.volumes import build_group, layers_by_group

        self.sets += layers_by_group(parts)
        self._add_all(build_group(parts))

    def _add_member(self, layer: Layer, media: Media, member: MdSuperblock) -> None:
        from whoseblock.stack.images.arrays import ArrayMember

        self._members[member.array].append(ArrayMember(layer, media, member))

    def _add_volume(self, layer: Layer, media: Media) -> bool:
        """Add a physical volume; return whether there is one."""
        from whoseblock.stack.formats.lvm import read_physical_volume

        if volume := read_physical_volume(media):
            from whoseblock.stack.images.volumes import PhysicalVolumeLayer

            self._parts.append(PhysicalVolumeLayer(layer, media, volume))
        return volume is not None

    def _add_all(self, found: Iterable[tuple[Layer, Media]]) -> None:
        for layer, media in found:
            self.add(layer, media)

    def _examine(self, layer: Layer, media: Media) -> None:
        # md first: a member with its superblock at the end begins like the array itself.
        table = read_partition_table(media)
        member = read_md_superblock(media)
        if member and not (table and _may_belong_to_last_partition(member, table, media.size)):
            self._add_member(layer, media, member)
        elif self._is_filesystem(media):
            return
        elif table and not table.doubts:
            # pvcreate wipes a table, but a partitioning tool may leave an LVM label.
            self._add_partitions(layer, media, table)
        elif not self._add_volume(layer, media) and table:
            self._add_partitions(layer, media, table)

    def _add_partitions(self, layer: Layer, media: Media, table: PartitionTable) -> None:
        layer.remarks += tuple(f"{layer.name}: {note}" for note in table.notes)
        layer.doubts += tuple(f"{layer.name}: {doubt}" for doubt in table.doubts)
        segments: list[Segment] = [UnmappedSegment(*structure) for structure in table.structures]
        for partition in table.partitions:
            name = partition_name(layer.name, partition.number)
            part = make_slice(name, media, partition.start, partition.length)
            below = Layer(name, partition.length, "partition", open_media=partial(_identity, part))
            segments.append(
                LinearSegment(partition.start, partition.length, below, what=partition.name)
            )
            self.add(below, part)
        layer.segments = segments


def _may_belong_to_last_partition(member: MdSuperblock, table: PartitionTable, size: int) -> bool:
    """Return whether a superblock at the end of a disk may be that of the last partition.

    A superblock of version 0.90 does not record where its device begins.
    """
    end = max((part.start + part.length for part in table.partitions), default=0)
    return member.is_0_90 and size - end < RESERVED_0_90


def _identity(media: Media) -> Media:
    return media


def add_table_structures(segments: Sequence[Segment], table: PartitionTable) -> list[Segment]:
    """Add the table's own structures to the partitions that the kernel reports.

    Return the segments unchanged if the table has other partitions: it may have been changed since
    the kernel read it. An extended partition, which the kernel reports with a length of two
    sectors, is replaced by its boot records.
    """
    known = {(part.start, part.length) for part in table.partitions}
    ours = [segment for segment in segments if (segment.start, segment.length) in known]
    if len(ours) != len(known):
        return list(segments)
    return [*ours, *(UnmappedSegment(*structure) for structure in table.structures)]


def partition_name(disk: str, number: int) -> str:
    """Return the kernel's name of a partition: a ``p`` separates two numbers."""
    return f"{disk}{'p' if disk[-1:].isdecimal() else ''}{number}"


def make_slice(name: str, media: Media, start: int, length: int) -> Media:
    """Return ``length`` bytes from ``start`` of a medium as a medium."""

    def locate(offset: int, size: int) -> Iterable[MappedRun]:
        return (MappedRun(size, (Copy(media, start + offset),)),)

    return MappedMedia(name, min(length, max(media.size - start, 0)), locate)
