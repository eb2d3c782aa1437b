"""Disks and images put together offline: partitions, volume groups and arrays, from what they hold.

Every medium at hand is added; `Assembly.finish` then looks into each, and into whatever it finds
there, until nothing new is found.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import ExitStack, closing
from typing import Final

from whoseblock.errors import BlockError
from whoseblock.media.base import Media
from whoseblock.media.mapped import Copy, MappedMedia, Part
from whoseblock.stack.base import Ending, Layer, Linear, Segment
from whoseblock.stack.partitions import Table, read_partitions

__all__ = ["Assembly"]

#: More layers than any machine has; a disk full of tables within tables could have more.
_MOST_LAYERS: Final = 10_000


class Assembly:
    """Layers over the media at hand.

    ``is_filesystem`` tells whether a medium holds a filesystem itself, and is to be looked into no
    further.
    """

    def __init__(self, is_filesystem: Callable[[Media], bool]) -> None:
        self._is_filesystem = is_filesystem
        self._todo: list[tuple[Layer, Media]] = []
        self._layers = 0

    def add(self, layer: Layer, media: Media) -> None:
        """Have a layer looked into, which nothing is known to be made of."""
        if self._layers < _MOST_LAYERS:
            self._layers += 1
            self._todo.append((layer, media))

    def finish(self) -> None:
        """Look into all that was added, and into all that is found there."""
        while self._todo:
            while self._todo:
                self._look_into(*self._todo.pop())

    def _look_into(self, layer: Layer, media: Media) -> None:
        if self._is_filesystem(media):
            return
        table = read_partitions(media)
        if table is not None:
            self._add_partitions(layer, media, table)

    def _add_partitions(self, layer: Layer, media: Media, table: Table) -> None:
        layer.remarks += table.notes
        segments: list[Segment] = [Ending(*structure) for structure in table.structures]
        for partition in table.partitions:
            name = partition_name(layer.name, partition.number)
            part = _slice(name, media, partition.start, partition.length)
            below = Layer(name, partition.length, "partition", open_media=lambda part=part: part)
            segments.append(Linear(partition.start, partition.length, below, what=partition.type))
            self.add(below, part)
        layer.segments = segments
