"""LVM2 volume groups, put together from their physical volumes."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from whoseblock.errors import UnsupportedError
from whoseblock.media.base import Media
from whoseblock.media.mapped import Copy, MappedMedia, Part
from whoseblock.stack.base import Ending, Layer, Linear, Segment
from whoseblock.stack.lvm import LogicalVolume, LvSegment, PhysicalVolume, PvOfGroup, VolumeGroup
from whoseblock.stack.raid import Member, MemberSegment, Raid0, locate

__all__ = ["GroupPart", "build_group"]


class GroupPart(NamedTuple):
    """A layer that holds a physical volume."""

    layer: Layer
    media: Media
    about: PhysicalVolume


def build_group(parts: Sequence[GroupPart]) -> Iterator[tuple[Layer, Media]]:
    """Cut physical volumes into segments; give the layers of the logical volumes on them."""
    groups: dict[str, VolumeGroup] = {}
    for part in parts:
        group = part.about.group
        if group and group.seqno >= groups.get(group.uuid, group).seqno:
            groups[group.uuid] = group
    at_hand = {part.about.uuid: part for part in parts}
    named: set[str] = set()
    for group in groups.values():
        builder = _Builder(group, at_hand)
        yield from builder.build()
        named |= {volume.uuid for volume in group.volumes}
    for part in parts:
        if part.about.uuid not in named:
            what, certain = "physical volume of LVM that is in no volume group", True
            if part.about.faults:
                what, certain = f"physical volume of LVM: {part.about.faults[0]}", False
            part.layer.segments = [Ending(0, part.layer.size, what, certain)]


def layers_by_group(parts: Sequence[GroupPart]) -> list[list[Layer]]:
    """Return the layers of the physical volumes of each volume group."""
    groups: dict[str, str] = {}
    for part in parts:
        if group := part.about.group:
            groups |= {volume.uuid: group.uuid for volume in group.volumes}
    layers: dict[str, list[Layer]] = defaultdict(list)
    for part in parts:
        if part.about.uuid in groups:
            layers[groups[part.about.uuid]].append(part.layer)
    return list(layers.values())


class _Builder:
    """Builds the layers of one volume group."""

    def __init__(self, group: VolumeGroup, at_hand: Mapping[str, GroupPart]) -> None:
        self._group = group
        self._physical = {volume.name: volume for volume in group.volumes}
        self._at_hand = {
            volume.name: at_hand[volume.uuid] for volume in group.volumes if volume.uuid in at_hand
        }
        self._segments: dict[str, list[Segment]] = defaultdict(list)

    def build(self) -> Iterator[tuple[Layer, Media]]:
        """Cut the physical volumes at hand, and give every logical volume with a use of its own."""
        users = self._users()
        tops = {}
        for volume in self._group.logical:
            layer, media = self._volume(volume)
            if use := users.get(volume.name):
                layer.segments = [use(layer.size)]
            elif media is not None:
                tops[volume.name] = layer, media
        for name, part in self._at_hand.items():
            self._finish(part, self._physical[name], self._segments[name])
        yield from tops.values()

    def _finish(self, part: GroupPart, volume: PvOfGroup, segments: list[Segment]) -> None:
        size = part.layer.size
        end = volume.start + volume.extents * self._group.extent_size
        head = min(volume.start, size)
        if head > 0:
            segments.append(Ending(0, head, f"LVM metadata of {self._group.name}"))
        if end < size:
            segments.append(Ending(end, size - end, f"not used by {self._group.name}"))
        part.layer.gap = f"unallocated extents of {self._group.name}"
        part.layer.segments = segments
        part.layer.remarks += part.about.faults

    def _users(self) -> dict[str, "_Use"]:
        """Say of every volume that is a part of another what becomes of it there."""
        users: dict[str, _Use] = {}
        for volume in self._group.logical:
            name = f"{self._group.name}/{volume.name}"
            for segment in volume.segments:
                for part, _ in segment.stripes:
                    if part not in self._physical and part != volume.name:
                        users[part] = _Use(name, segment.kind)
        # A snapshot leaves its origin as it is: it is a volume like any other.
        for volume in self._group.logical:
            for segment in volume.segments:
                if segment.kind == "snapshot" and segment.stripes:
                    users.pop(segment.stripes[0][0], None)
        return users

    def _volume(self, volume: LogicalVolume) -> tuple[Layer, Media | None]:
        """Make the layer of a volume, with a medium if it can be read here."""
        extent = self._group.extent_size
        name = f"{self._group.name}/{volume.name}"
        size = sum(segment.extents for segment in volume.segments) * extent
        followed = all(segment.kind == "striped" for segment in volume.segments)
        media = MappedMedia(name, size, self._locator(volume)) if followed and size else None
        opener = None if media is None else partial(_same, media)
        layer = Layer(name, size, "logical volume", open_media=opener)
        for segment in volume.segments if followed else ():
            self._cut(layer, segment)
        return layer, media

    def _striping(self, segment: LvSegment) -> Raid0:
        stripes = len(segment.stripes)
        if not stripes or segment.extents % stripes or segment.stripe_size <= 0:
            raise UnsupportedError("stripes that make no sense")
        rows = segment.extents // stripes * self._group.extent_size // segment.stripe_size
        return Raid0(segment.stripe_size, [rows] * stripes)

    def _cut(self, layer: Layer, segment: LvSegment) -> None:
        """Give each physical volume its part of a segment."""
        extent = self._group.extent_size
        to_start = segment.first * extent
        each = segment.extents // max(len(segment.stripes), 1) * extent
        for number, (name, first) in enumerate(segment.stripes):
            if name not in self._at_hand:
                continue
            start = self._physical[name].start + first * extent
            if len(segment.stripes) == 1:
                self._segments[name].append(Linear(start, each, layer, to_start))
                continue
            try:
                striping = self._striping(segment)
            except UnsupportedError as error:
                what = f"part of {layer.name}: {error}"
                self._segments[name].append(Ending(start, each, what, certain=False))
                continue
            self._segments[name].append(
                MemberSegment(start, each, layer, striping, number, to_start)
            )

    def _locator(self, volume: LogicalVolume) -> "_Locator":
        places = []
        for segment in volume.segments:
            readers = [self._reader(name, first) for name, first in segment.stripes]
            striping = None
            if len(readers) > 1:
                try:
                    striping = self._striping(segment)
                except UnsupportedError:
                    readers = []
            start = segment.first * self._group.extent_size
            length = segment.extents * self._group.extent_size
            places.append(_Place(start, length, tuple(readers), striping))
        return _Locator(places)

    def _reader(self, name: str, first: int) -> Member:
        if name not in self._at_hand:
            return Member(None, 0, f"physical volume {name} of {self._group.name}")
        start = self._physical[name].start + first * self._group.extent_size
        return Member(self._at_hand[name].media, start, name)


class _Use(NamedTuple):
    """What becomes of a volume that is a part of another."""

    name: str
    kind: str

    def __call__(self, size: int) -> Segment:
        """Make the segment of such a volume, which has ``size`` bytes."""
        what = f"part of {self.name}, a volume of the kind {self.kind}, which is not followed"
        return Ending(0, max(size, 1), what, certain=False)


class _Place(NamedTuple):
    """A segment of a volume, and where it is read."""

    start: int
    length: int
    readers: tuple[Member, ...]
    striping: Raid0 | None


class _Locator:
    """Finds the parts of a range of a logical volume."""

    def __init__(self, places: Iterable[_Place]) -> None:
        self._places = sorted(places)
        self._starts = [place.start for place in self._places]

    def __call__(self, start: int, length: int) -> Iterator[Part]:
        end = start + length
        while start < end:
            index = bisect_right(self._starts, start) - 1
            place = self._places[index] if index >= 0 else None
            if place is None or start >= place.start + place.length:
                yield Part(end - start, ())
                return
            size = min(end, place.start + place.length) - start
            within = start - place.start
            if place.striping is not None:
                yield from locate(place.striping, place.readers, within, size)
            else:
                copies = tuple(
                    Copy(reader.media, reader.start + within, reader.name)
                    for reader in place.readers
                )
                yield Part(size, copies)
            start += size


def _same(media: Media) -> Media:
    return media
