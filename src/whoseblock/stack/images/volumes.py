"""Assemble LVM2 volume groups from their physical volumes."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from whoseblock.errors import UnsupportedError
from whoseblock.media.base import Media
from whoseblock.media.mapped import Copy, MappedMedia, MappedRun
from whoseblock.stack.base import Layer, LinearSegment, Segment, UnmappedSegment
from whoseblock.stack.formats.lvm import (
    LogicalVolume,
    LvSegment,
    PhysicalVolume,
    PhysicalVolumeEntry,
    VolumeGroup,
)
from whoseblock.stack.formats.raid import Raid0
from whoseblock.stack.members import MemberReader, MemberSegment, locate_runs

__all__ = ["PhysicalVolumeLayer", "build_group"]


class PhysicalVolumeLayer(NamedTuple):
    """A layer with a physical volume."""

    layer: Layer
    media: Media
    label: PhysicalVolume


def build_group(parts: Sequence[PhysicalVolumeLayer]) -> Iterator[tuple[Layer, Media]]:
    """Cut physical volumes into segments; yield the layers of their logical volumes."""
    groups: dict[str, VolumeGroup] = {}
    for part in parts:
        group = part.label.group
        if group and group.seqno >= groups.get(group.uuid, group).seqno:
            groups[group.uuid] = group
    available = {part.label.uuid: part for part in parts}
    named: set[str] = set()
    for group in groups.values():
        builder = _GroupBuilder(group, available)
        yield from builder.build()
        named |= {volume.uuid for volume in group.volumes}
    for part in parts:
        if part.label.uuid not in named:
            what, certain = "LVM physical volume in no volume group", True
            if part.label.faults:
                what, certain = f"LVM physical volume: {part.label.faults[0]}", False
            part.layer.segments = [UnmappedSegment(0, part.layer.size, what, certain)]


def layers_by_group(parts: Sequence[PhysicalVolumeLayer]) -> list[list[Layer]]:
    """Return the layers of the physical volumes of each volume group."""
    groups: dict[str, str] = {}
    for part in parts:
        if group := part.label.group:
            groups |= {volume.uuid: group.uuid for volume in group.volumes}
    layers: dict[str, list[Layer]] = defaultdict(list)
    for part in parts:
        if part.label.uuid in groups:
            layers[groups[part.label.uuid]].append(part.layer)
    return list(layers.values())


class _GroupBuilder:
    """Builds the layers of one volume group."""

    def __init__(self, group: VolumeGroup, available: Mapping[str, PhysicalVolumeLayer]) -> None:
        self._group = group
        self._physical = {volume.name: volume for volume in group.volumes}
        self._available = {
            volume.name: available[volume.uuid]
            for volume in group.volumes
            if volume.uuid in available
        }
        self._segments: dict[str, list[Segment]] = defaultdict(list)

    def build(self) -> Iterator[tuple[Layer, Media]]:
        """Cut the available physical volumes; yield every logical volume that can be read."""
        uses = self._find_uses()
        tops = {}
        for volume in self._group.logical:
            layer, media = self._make_volume(volume)
            if use := uses.get(volume.name):
                layer.segments = [use(layer.size)]
            elif media is not None:
                tops[volume.name] = layer, media
        for name, part in self._available.items():
            self._cut_rest(part, self._physical[name], self._segments[name])
        yield from tops.values()

    def _cut_rest(
        self, part: PhysicalVolumeLayer, volume: PhysicalVolumeEntry, segments: list[Segment]
    ) -> None:
        size = part.layer.size
        end = volume.start + volume.extents * self._group.extent_size
        head = min(volume.start, size)
        if head > 0:
            segments.append(UnmappedSegment(0, head, f"LVM metadata of {self._group.name}"))
        if end < size:
            segments.append(UnmappedSegment(end, size - end, f"not used by {self._group.name}"))
        part.layer.gap = f"unallocated extents of {self._group.name}"
        part.layer.segments = segments
        part.layer.remarks += part.label.faults

    def _find_uses(self) -> dict[str, "_VolumeUse"]:
        """Return the use of every volume that is a part of another volume."""
        uses: dict[str, _VolumeUse] = {}
        for volume in self._group.logical:
            name = f"{self._group.name}/{volume.name}"
            for segment in volume.segments:
                for part, _ in segment.stripes:
                    if part not in self._physical and part != volume.name:
                        uses[part] = _VolumeUse(name, segment.kind)
        # A snapshot does not change its origin, which is a normal volume.
        for volume in self._group.logical:
            for segment in volume.segments:
                if segment.kind == "snapshot" and segment.stripes:
                    uses.pop(segment.stripes[0][0], None)
        return uses

    def _make_volume(self, volume: LogicalVolume) -> tuple[Layer, Media | None]:
        """Return the layer of a volume, with a medium if it can be read."""
        extent = self._group.extent_size
        name = f"{self._group.name}/{volume.name}"
        size = sum(segment.extents for segment in volume.segments) * extent
        followed = all(segment.kind == "striped" for segment in volume.segments)
        media = MappedMedia(name, size, self._make_locator(volume)) if followed and size else None
        opener = None if media is None else partial(_same, media)
        layer = Layer(name, size, "logical volume", open_media=opener)
        for segment in volume.segments if followed else ():
            self._cut_segment(layer, segment)
        return layer, media

    def _make_striping(self, segment: LvSegment) -> Raid0:
        stripes = len(segment.stripes)
        if not stripes or segment.extents % stripes or segment.stripe_size <= 0:
            raise UnsupportedError("invalid stripes")
        rows = segment.extents // stripes * self._group.extent_size // segment.stripe_size
        return Raid0(segment.stripe_size, [rows] * stripes)

    def _cut_segment(self, layer: Layer, segment: LvSegment) -> None:
        """Add the parts of a segment to the physical volumes."""
        extent = self._group.extent_size
        to_start = segment.first * extent
        each = segment.extents // max(len(segment.stripes), 1) * extent
        for number, (name, first) in enumerate(segment.stripes):
            if name not in self._available:
                continue
            start = self._physical[name].start + first * extent
            if len(segment.stripes) == 1:
                self._segments[name].append(LinearSegment(start, each, layer, to_start))
                continue
            try:
                striping = self._make_striping(segment)
            except UnsupportedError as error:
                what = f"part of {layer.name}: {error}"
                self._segments[name].append(UnmappedSegment(start, each, what, certain=False))
                continue
            self._segments[name].append(
                MemberSegment(start, each, layer, striping, number, to_start)
            )

    def _make_locator(self, volume: LogicalVolume) -> "_RunLocator":
        segments = []
        for segment in volume.segments:
            readers = [self._make_reader(name, first) for name, first in segment.stripes]
            striping = None
            if len(readers) > 1:
                try:
                    striping = self._make_striping(segment)
                except UnsupportedError:
                    readers = []
            start = segment.first * self._group.extent_size
            length = segment.extents * self._group.extent_size
            segments.append(_ReadableSegment(start, length, tuple(readers), striping))
        return _RunLocator(segments)

    def _make_reader(self, name: str, first: int) -> MemberReader:
        if name not in self._available:
            return MemberReader(None, 0, f"physical volume {name} of {self._group.name}")
        start = self._physical[name].start + first * self._group.extent_size
        return MemberReader(self._available[name].media, start, name)


class _VolumeUse(NamedTuple):
    """The use of a volume that is a part of another one."""

    name: str
    kind: str

    def __call__(self, size: int) -> Segment:
        """Return the segment of such a volume of ``size`` bytes."""
        what = f"part of {self.name}, a volume of the kind {self.kind}, which is not followed"
        return UnmappedSegment(0, max(size, 1), what, certain=False)


class _ReadableSegment(NamedTuple):
    """A segment of a volume with the readers of its stripes."""

    start: int
    length: int
    readers: tuple[MemberReader, ...]
    striping: Raid0 | None


class _RunLocator:
    """Locates the runs of a range of a logical volume."""

    def __init__(self, segments: Iterable[_ReadableSegment]) -> None:
        self._segments = sorted(segments)
        self._starts = [segment.start for segment in self._segments]

    def __call__(self, start: int, length: int) -> Iterator[MappedRun]:
        end = start + length
        while start < end:
            index = bisect_right(self._starts, start) - 1
            segment = self._segments[index] if index >= 0 else None
            if segment is None or start >= segment.start + segment.length:
                yield MappedRun(end - start, ())
                return
            size = min(end, segment.start + segment.length) - start
            within = start - segment.start
            if segment.striping is not None:
                yield from locate_runs(segment.striping, segment.readers, within, size)
            else:
                copies = tuple(
                    Copy(reader.media, reader.start + within, reader.name)
                    for reader in segment.readers
                )
                yield MappedRun(size, copies)
            start += size


def _same(media: Media) -> Media:
    return media
