"""Assemble disks and images offline: find partitions, arrays and volume groups by their content.

Add every available medium; `Assembly.finish` then examines each of them, and each layer that it
finds there, until it finds nothing new.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from whoseblock.media.base import Media, next_data
from whoseblock.stack.base import Layer, LinearSegment, Segment, UnmappedSegment
from whoseblock.stack.formats.md import (
    RESERVED_0_90,
    MdSuperblock,
    find_foreign_member,
    read_md_superblock,
)
from whoseblock.stack.formats.partitions import PartitionTable, read_partition_tables

if TYPE_CHECKING:
    from whoseblock.stack.images.arrays import ArrayMember
    from whoseblock.stack.images.volumes import PhysicalVolumeLayer

__all__ = ["Assembly", "add_table_structures", "make_slice", "partition_name"]

#: Limit on the number of layers; nested tables on a hostile disk could define more.
_MAX_LAYERS: Final = 20_000
#: Limit on the number of layers above each other.
_MAX_DEPTH: Final = 12
#: Partitions of a table that are read to find out the unit of the table.
_MAX_VERIFIED: Final = 16


class _FoundLayer(NamedTuple):
    """A layer to examine, and its medium."""

    layer: Layer
    media: Media


class _Beginnings(NamedTuple):
    """The partitions of a table that begin with something known, and those that were read."""

    known: int
    read: int


class Assembly:
    """Builds layers over the available media.

    ``is_filesystem`` returns whether a filesystem begins on a medium; such a medium is not examined
    further. ``sector`` is the sector size of the disks, None if it is unknown. ``read_running``
    yields the superblocks of all members of arrays that the kernel runs. ``find_opened``
    returns the layer of the opened volume of an encrypted layer, if the user named it.
    """

    def __init__(
        self,
        is_filesystem: Callable[[Media], bool],
        *,
        sector: int | None = None,
        read_running: Callable[[], Iterable[MdSuperblock]] = tuple,
        find_opened: Callable[[Layer], Layer | None] = lambda _: None,
    ) -> None:
        self._is_filesystem = is_filesystem
        self._sector = sector
        self._read_running = read_running
        self._find_opened = find_opened
        self._depths: dict[Layer, int] = {}
        self._queue: list[_FoundLayer] = []
        self._count = 0
        self._members: dict[bytes, list[ArrayMember]] = defaultdict(list)
        self._parts: list[PhysicalVolumeLayer] = []
        #: For each array and volume group, the layers of its members.
        self.sets: list[list[Layer]] = []

    def add(self, layer: Layer, media: Media, depth: int = 0) -> None:
        """Add a layer of unknown content to be examined, which lies over ``depth`` others.

        Past the limits, a layer is not examined. One that the user or the kernel named is then
        taken for a filesystem's device, with a doubt; one that was found is unknown.
        """
        if self._count < _MAX_LAYERS and depth <= _MAX_DEPTH:
            self._count += 1
            self._depths[layer] = depth
            self._queue.append(_FoundLayer(layer, media))
        elif depth:
            what = "one of too many layers, which are not followed"
            layer.segments = [UnmappedSegment(0, max(layer.size, 1), what, certain=False)]
        else:
            doubt = "there are too many layers: it was not searched for partitions and volumes"
            layer.doubts += (f"{layer.name}: {doubt}",)

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

        layers = [one.layer for one in members]
        self.sets.append(layers)
        running: Iterable[MdSuperblock] = ()
        # An image may be older than the array that runs.
        if any(layer.device is not None for layer in layers):
            array = members[0].superblock.array
            running = [one for one in self._read_running() if one.array == array]
        self._add_all(build_array(members, running), layers)

    def _add_groups(self, parts: "list[PhysicalVolumeLayer]") -> None:
        from whoseblock.stack.images.volumes import build_group, layers_by_group

        self.sets += layers_by_group(parts)
        self._add_all(build_group(parts), [part.layer for part in parts])

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

    def _add_encrypted(self, layer: Layer, media: Media) -> bool:
        """Cut an encrypted layer; return whether it is one."""
        from whoseblock.stack.formats.luks import read_luks_header

        if header := read_luks_header(media):
            from whoseblock.stack.images.encrypted import cut_encrypted

            layer.segments = list(cut_encrypted(layer, header, self._find_opened(layer)))
        return header is not None

    def _add_all(self, found: Iterable[tuple[Layer, Media]], below: Sequence[Layer]) -> None:
        depth = 1 + max(self._depths.get(layer, 0) for layer in below)
        for layer, media in found:
            self.add(layer, media, depth)

    def _examine(self, layer: Layer, media: Media) -> None:
        if next_data(media, 0) >= media.size:
            # Zeros begin like nothing that is followed.
            return
        kind, readable = find_foreign_member(media)
        if kind:
            what = f"member of an {kind}, which is not followed: name the volume itself"
            layer.segments = [UnmappedSegment(0, layer.size, what, certain=False)]
            return
        # Only whole disks are members of such arrays.
        if not readable and not self._depths.get(layer) and layer.kind != "partition":
            doubt = (
                "unreadable where the metadata of an array would be (Intel RST, DDF): if it is a"
                " member, this is wrong"
            )
            layer.doubts += (f"{layer.name}: {doubt}",)
        # md first: a member with its superblock at the end begins like the array itself.
        table = self._read_table(media)
        member = read_md_superblock(media)
        if member and table and _may_belong_to_last_partition(member, table, media.size):
            member = None
        if member and table and not _is_within_array(member, table):
            self._add_both(layer, media, member, table)
        elif member:
            self._add_member(layer, media, member)
        elif self._is_filesystem(media) or self._add_encrypted(layer, media):
            return
        elif table and not table.doubts:
            # pvcreate wipes a table, but a partitioning tool may leave an LVM label.
            self._add_partitions(layer, media, table)
        elif not self._add_volume(layer, media) and table:
            self._add_partitions(layer, media, table)

    def _read_table(self, media: Media) -> PartitionTable | None:
        """Read a partition table in the unit in which more partitions begin with something."""
        tables = read_partition_tables(media, self._sector)
        if len(tables) <= 1:
            return tables[0] if tables else None
        small, large = tables
        counts = [self._count_known(media, table) for table in tables]
        if counts[1].known and not counts[0].known:
            note = (
                f"the MBR counts sectors of {large.sector} bytes, at which"
                f" {counts[1].known} of {counts[1].read} partitions begin with something known;"
                f" --sector-size {small.sector} reads it otherwise"
            )
            return large._replace(notes=(*large.notes, note))
        if bool(counts[0].known) == bool(counts[1].known) and large.fits:
            doubt = (
                f"the MBR may count sectors of {small.sector} or of {large.sector} bytes;"
                f" {small.sector} is assumed, --sector-size names it"
            )
            return small._replace(doubts=(*small.doubts, doubt))
        return small

    def _count_known(self, media: Media, table: PartitionTable) -> _Beginnings:
        """Count the partitions that begin with something known."""
        read = [part for part in table.partitions if part.start][:_MAX_VERIFIED]
        slices = (make_slice("partition", media, part.start, part.length) for part in read)
        known = sum(self._is_filesystem(one) or _has_signature(one) for one in slices)
        return _Beginnings(known, len(read))

    def _add_both(
        self, layer: Layer, media: Media, member: MdSuperblock, table: PartitionTable
    ) -> None:
        """Add a member of an array that has a partition table beside its data.

        One of both is a leftover. If partitions begin with something known, both are followed.
        """
        doubt = "a partition table and an md superblock contradict each other: one is a leftover"
        if self._count_known(media, table).known:
            self._add_partitions(layer, media, table)
            partitions = layer.segments
            shadow = Layer(layer.name, layer.size, layer.kind, device=layer.device)
            self._add_member(shadow, media, member)
            layer.segments = [*partitions, LinearSegment(0, layer.size, shadow)]
        else:
            self._add_member(layer, media, member)
        layer.doubts += (f"{layer.name}: {doubt}",)

    def _add_partitions(self, layer: Layer, media: Media, table: PartitionTable) -> None:
        layer.remarks += tuple(f"{layer.name}: {note}" for note in table.notes)
        layer.doubts += tuple(f"{layer.name}: {doubt}" for doubt in table.doubts)
        segments: list[Segment] = [UnmappedSegment(*structure) for structure in table.structures]
        depth = self._depths.get(layer, 0) + 1
        for partition in table.partitions:
            name = partition_name(layer.name, partition.number)
            part = make_slice(name, media, partition.start, partition.length)
            below = Layer(name, partition.length, "partition", open_media=partial(_identity, part))
            doubt = partition.doubt and f"{layer.name}: {partition.doubt}"
            segments.append(
                LinearSegment(
                    partition.start, partition.length, below, what=partition.name, doubt=doubt
                )
            )
            # One from byte 0 contains the table itself, and overlapping ones would multiply.
            if partition.start and not doubt:
                self.add(below, part, depth)
        layer.segments = segments


def _has_signature(media: Media) -> bool:
    """Return whether a medium has the signature of something that partitions contain."""
    from whoseblock.signatures import SIGNATURES, find_signatures

    kinds = {"filesystem", "encrypted", "member", "swap"}
    wanted = (one for one in SIGNATURES if one.kind in kinds)
    return bool(find_signatures(wanted, media.pread, media.size)[0])


def _may_belong_to_last_partition(member: MdSuperblock, table: PartitionTable, size: int) -> bool:
    """Return whether a superblock at the end of a disk may be that of the last partition.

    A superblock of version 0.90 does not record where its device begins.
    """
    end = max((part.start + part.length for part in table.partitions), default=0)
    return member.is_0_90 and size - end < RESERVED_0_90


def _is_within_array(member: MdSuperblock, table: PartitionTable) -> bool:
    """Return whether a partition table at the start of a member is the array's own.

    The array begins where the member does if its superblock is at the end.
    """
    if member.start:
        return False
    data = member.component if member.level > 0 else member.size
    size = data if member.level == 1 else data * member.members
    return all(part.start + part.length <= size for part in table.partitions)


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
    from whoseblock.media.mapped import Copy, MappedMedia, MappedRun

    def locate(offset: int, size: int) -> Iterable[MappedRun]:
        return (MappedRun(size, (Copy(media, start + offset),)),)

    return MappedMedia(name, min(length, max(media.size - start, 0)), locate)
