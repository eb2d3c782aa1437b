"""Assemble LVM2 volume groups from their physical volumes."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import Final, NamedTuple

from whoseblock.errors import UnsupportedError
from whoseblock.media.base import Media
from whoseblock.media.mapped import Copy, MappedMedia, MappedRun
from whoseblock.media.striping import Raid0
from whoseblock.stack.base import Layer, LinearSegment, Segment, UnmappedSegment
from whoseblock.stack.formats.lvm import (
    LogicalVolume,
    LvSegment,
    PhysicalVolume,
    PhysicalVolumeEntry,
    VolumeGroup,
)
from whoseblock.stack.members import MemberReader, MemberSegment, locate_runs

__all__ = ["FOLLOWED_SEGMENTS", "PhysicalVolumeLayer", "build_group"]


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
            what, certain = _describe_groupless(part.label)
            part.layer.segments = [UnmappedSegment(0, part.layer.size, what, certain)]


#: What to do about a physical volume whose group is described on others.
_NAME_OTHERS = "name the other disks of its volume group with --member"


def _describe_groupless(label: PhysicalVolume) -> tuple[str, bool]:
    """Return the use of a physical volume of no known volume group, and whether it is certain."""
    if label.group is not None:
        return f"LVM physical volume that {label.group.name} does not contain any more", False
    if label.lost:
        return f"LVM physical volume: {label.lost[0].what}; {_NAME_OTHERS}", False
    if label.in_group or label.in_group is None:
        return f"LVM physical volume without metadata: {_NAME_OTHERS}", False
    return "LVM physical volume in no volume group", True


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


#: Volumes are made of volumes during a pvmove, in three steps at most.
_MAX_HEIGHT: Final = 4


class _Area(NamedTuple):
    """A physical or logical volume with room for segments of logical volumes."""

    layer: Layer
    media: Media
    start: int


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
        #: The available physical volumes, and the followed logical volumes.
        self._areas = {
            name: _Area(part.layer, part.media, self._physical[name].start)
            for name, part in self._available.items()
        }
        self._segments: dict[str, list[Segment]] = defaultdict(list)
        self._logical = {volume.name: volume for volume in group.logical}
        high = self._find_too_high()
        self._kinds = {
            volume.name: _describe_kinds(volume, too_high=volume.name in high)
            for volume in group.logical
        }

    def build(self) -> Iterator[tuple[Layer, Media]]:
        """Cut the available physical volumes; yield every logical volume that can be read."""
        for volume in self._group.logical:
            self._areas[volume.name] = self._make_volume(volume)
        for volume in self._group.logical:
            for segment, kind in zip(volume.segments, self._kinds[volume.name], strict=True):
                self._cut_segment(volume, segment, kind)
        for name, part in self._available.items():
            self._cut_rest(part, self._physical[name], self._segments[name])
        uses = self._find_uses()
        for volume in self._group.logical:
            layer, media, _ = self._areas[volume.name]
            if use := uses.get(volume.name):
                layer.segments = [use(layer.size)]
            elif above := self._segments.get(volume.name):
                layer.segments = _without_overlaps(above, self._group.name)
                layer.gap, layer.gap_certain = f"part of {self._group.name}", False
            elif any(kind.followed for kind in self._kinds[volume.name]):
                yield layer, media

    def _find_too_high(self) -> set[str]:
        """Return the volumes that are made of volumes in more steps than valid metadata has."""
        below = {
            volume.name: {name for segment in volume.segments for name, _ in segment.stripes}
            & self._logical.keys()
            for volume in self._group.logical
        }
        high = set(below)
        for _ in range(_MAX_HEIGHT):
            high = {name for name in high if below[name] & high}
        return high

    def _cut_rest(
        self, part: PhysicalVolumeLayer, volume: PhysicalVolumeEntry, segments: list[Segment]
    ) -> None:
        group = self._group
        size = part.layer.size
        end = volume.start + volume.extents * group.extent_size
        head = min(volume.start, size)
        segments = _without_overlaps(segments, group.name)
        if head > 0:
            segments.append(UnmappedSegment(0, head, f"LVM metadata of {group.name}"))
        if end < size:
            segments.append(UnmappedSegment(end, size - end, f"not used by {group.name}"))
        part.layer.gap = f"unallocated extents of {group.name}"
        part.layer.segments = segments
        for other in self._available.values():
            for lost in other.label.lost:
                what = f"{other.layer.name}: {lost.what}"
                if lost.seqno is None or lost.seqno > group.seqno:
                    part.layer.doubts += (f"{what}; it may be newer than what is used",)
                elif other is part:
                    part.layer.remarks += (what,)

    def _find_uses(self) -> dict[str, "_VolumeUse"]:
        """Return the use of every volume that is a part of a volume that is not followed."""
        uses: dict[str, _VolumeUse] = {}
        for volume in self._group.logical:
            name = f"{self._group.name}/{volume.name}"
            for segment, kind in zip(volume.segments, self._kinds[volume.name], strict=True):
                for part, _ in segment.stripes:
                    if part not in self._physical and part != volume.name and not kind.followed:
                        uses[part] = _VolumeUse(name, kind.name)
        # A snapshot does not change its origin, which is a normal volume.
        for volume in self._group.logical:
            for segment in volume.segments:
                if segment.kind == "snapshot" and segment.stripes:
                    uses.pop(segment.stripes[0][0], None)
        return uses

    def _make_volume(self, volume: LogicalVolume) -> _Area:
        """Return the layer of a volume, and the medium that reads what is followed of it."""
        extent = self._group.extent_size
        name = f"{self._group.name}/{volume.name}"
        last = volume.segments[-1] if volume.segments else None
        size = (last.first + last.extents) * extent if last else 0
        media = MappedMedia(name, size, _RunLocator(partial(self._readable_segments, volume)))
        layer = Layer(name, size, "logical volume", open_media=partial(_same, media))
        return _Area(layer, media, 0)

    def _make_striping(self, segment: LvSegment) -> Raid0:
        stripes = len(segment.stripes)
        if not stripes or segment.extents % stripes or segment.stripe_size <= 0:
            raise UnsupportedError("invalid stripes")
        rows = segment.extents // stripes * self._group.extent_size // segment.stripe_size
        return Raid0(segment.stripe_size, [rows] * stripes)

    def _cut_segment(self, volume: LogicalVolume, segment: LvSegment, kind: "_SegmentKind") -> None:
        """Add the parts of a segment to what it is made of."""
        extent = self._group.extent_size
        layer = self._areas[volume.name].layer
        to_start = segment.first * extent
        copies = len(segment.stripes) if kind.name != "striped" else 1
        each = segment.extents * copies // max(len(segment.stripes), 1) * extent
        striping: Raid0 | None = None
        why = "" if kind.followed else f"a segment of the kind {kind.name}, which is not followed"
        if not why and copies < len(segment.stripes):
            try:
                striping = self._make_striping(segment)
            except UnsupportedError as error:
                why = str(error)
        for number, (name, first) in enumerate(segment.stripes):
            if name not in self._areas or (why and name in self._logical):
                continue
            start = self._areas[name].start + first * extent
            above: Segment
            if why:
                above = UnmappedSegment(start, each, f"part of {layer.name}: {why}", certain=False)
            elif striping is not None:
                above = MemberSegment(start, each, layer, striping, number, to_start)
            elif volume.is_move and segment.kind == "mirror":
                above = _cut_move(kind.name, number, LinearSegment(start, each, layer, to_start))
            else:
                above = LinearSegment(start, each, layer, to_start)
            self._segments[name].append(above)

    def _readable_segments(self, volume: LogicalVolume) -> Iterator["_ReadableSegment"]:
        for segment, kind in zip(volume.segments, self._kinds[volume.name], strict=True):
            readers = []
            striping = None
            if kind.followed:
                readers = [self._make_reader(name, first) for name, first in segment.stripes]
                if kind.name == _MOVED:
                    readers = readers[1:]
                elif kind.name != "striped":
                    readers = readers[:1]
                elif len(readers) > 1:
                    try:
                        striping = self._make_striping(segment)
                    except UnsupportedError:
                        readers = []
            start = segment.first * self._group.extent_size
            length = segment.extents * self._group.extent_size
            yield _ReadableSegment(start, length, tuple(readers), striping)

    def _make_reader(self, name: str, first: int) -> MemberReader:
        if name not in self._areas:
            return MemberReader(None, 0, f"physical volume {name} of {self._group.name}")
        area = self._areas[name]
        return MemberReader(area.media, area.start + first * self._group.extent_size, name)


class _SegmentKind(NamedTuple):
    """The kind of a segment, and whether it is followed."""

    name: str
    followed: bool


#: The kinds of segments that are followed, with how. Any other kind is named, and unknown.
FOLLOWED_SEGMENTS: Final = {
    "striped": "by its stripes, of which a linear segment has one",
    "mirror": "of an unfinished pvmove: to where each segment is now; other mirrors are unknown",
}
#: The states of a segment of an unfinished pvmove, which copies one segment after the other
#: (_mirrored_add_target_line in lvm2's lib/mirror/mirrored.c).
_MOVED, _MOVING, _TO_MOVE = "moved", "being moved", "to be moved"


def _describe_kinds(volume: LogicalVolume, *, too_high: bool) -> list[_SegmentKind]:
    """Return the kind of each segment of a volume."""
    kinds = []
    moving = _MOVING
    for segment in volume.segments:
        known = segment.kind in FOLLOWED_SEGMENTS and bool(segment.stripes)
        kind = _SegmentKind(segment.kind, known and segment.kind != "mirror")
        if known and segment.kind == "mirror" and volume.is_move and len(segment.stripes) == 2:  # noqa: PLR2004
            if segment.moved >= segment.extents:
                kind = _SegmentKind(_MOVED, followed=True)
            else:
                kind, moving = _SegmentKind(moving, followed=True), _TO_MOVE
        kinds.append(kind._replace(followed=kind.followed and not too_high))
    return kinds


def _cut_move(state: str, number: int, whole: LinearSegment) -> Segment:
    """Return the old (0) or the new place (1) of a segment that pvmove moves."""
    name = whole.to.name
    if state == _MOVING and number == 0:
        return whole._replace(remark=f"{name}: pvmove is copying these extents to another place")
    if state == _MOVING:
        return whole._replace(doubt=f"{name}: pvmove may not have copied these extents yet")
    if (state == _MOVED) == (number == 1):
        return whole
    what = "were moved from" if state == _MOVED else "are to be moved to"
    return UnmappedSegment(whole.start, whole.length, f"extents that {name} {what} here")


def _without_overlaps(segments: Iterable[Segment], group: str) -> list[Segment]:
    """Return segments, of which those that overlap others are replaced: no metadata has them."""
    kept: list[Segment] = []
    for segment in sorted(segments, key=lambda one: one.start):
        last = kept[-1] if kept else None
        if last is None or last.start + last.length <= segment.start:
            kept.append(segment)
            continue
        end = max(last.start + last.length, segment.start + segment.length)
        what = f"extents that {group} uses more than once"
        kept[-1] = UnmappedSegment(last.start, end - last.start, what, certain=False)
    return kept


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

    def __init__(self, read_segments: Callable[[], Iterable[_ReadableSegment]]) -> None:
        self._read_segments = read_segments

    @cached_property
    def _segments(self) -> list[_ReadableSegment]:
        return sorted(self._read_segments(), key=lambda segment: segment.start)

    @cached_property
    def _starts(self) -> list[int]:
        return [segment.start for segment in self._segments]

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
