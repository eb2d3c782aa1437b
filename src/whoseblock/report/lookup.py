"""The report of a lookup: collect its answers, and make the content of the page."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from whoseblock.errors import WhoseblockError
from whoseblock.fs.base import Answer, Paths
from whoseblock.fs.stream import LeadingRows
from whoseblock.printable import printable
from whoseblock.report.content import Content, Heading, LayerLine, LostFile, shown_path
from whoseblock.report.device_map import MAX_AREAS, DeviceMap, FileKey
from whoseblock.summary import FileLoss, Summary

if TYPE_CHECKING:
    from whoseblock.columns import PlacedColumns
    from whoseblock.fs.base import Owner
    from whoseblock.lookup import Lookup
    from whoseblock.querying import StreamItem
    from whoseblock.stack.base import Layer

__all__ = ["LookupReport"]


class LookupReport:
    """Collects the answers of a lookup for a report."""

    def __init__(self) -> None:
        self._maps: dict[str, DeviceMap] = {}
        #: The layers from a device down to a filesystem, in the order in which they were found.
        self._ways: dict[tuple[str, ...], None] = {}

    def add(self, layer: "Layer", item: "StreamItem | PlacedColumns") -> None:
        """Add answers, or leading rows of one, about a layer."""
        drawn = self._maps.get(layer.name)
        if drawn is None:
            left = MAX_AREAS - sum(map(len, self._maps.values()))
            drawn = self._maps[layer.name] = DeviceMap(printable(layer.name), layer.size, left)
        if isinstance(item, (Answer, LeadingRows)):
            for row in item.owners:
                way = _way(row, layer)
                self._ways[way] = None
                drawn.add_row(way[-1], row)
        else:
            way = tuple(name for name, _ in item.way) or (layer.name,)
            self._ways[way] = None
            drawn.add_columns(way[-1], item)

    def content(
        self,
        heading: Heading,
        finder: "Lookup",
        summary: Summary,
        losses: Iterable[tuple[FileLoss, Paths | None]],
    ) -> Content:
        """Return the content of the page."""
        maps = list(self._maps.values())
        firsts = _firsts(maps)
        return Content(
            *heading,
            asked=summary.asked,
            complete=not summary.incomplete,
            totals={kind: count for kind, count in summary.totals.items() if count},
            metadata=dict(summary.metadata),
            reasons=[printable(note) for note in summary.notes if note in summary.reasons],
            remarks=[printable(note) for note in summary.notes if note not in summary.reasons],
            ways=[[_line(finder, name) for name in way] for way in self._ways],
            maps=maps,
            files=[_lost_file(loss, paths, firsts) for loss, paths in losses],
            failures=[],
        )


def _way(row: "Owner", layer: "Layer") -> tuple[str, ...]:
    """Return the layers of a row, down to that of its filesystem."""
    via = row.via if isinstance(row.via, tuple) else ()
    return tuple(one.layer for one in via) or (layer.name,)


def _line(finder: "Lookup", name: str) -> LayerLine:
    """Describe a layer: what it is, and the filesystem on it."""
    layer = finder.layers.get(name)
    if layer is None:
        return LayerLine(printable(name), "", 0)
    what = layer.kind
    if not layer.segments:
        try:
            what += f": {finder.leaf(layer).name}"
        except WhoseblockError as error:
            what += f": {error}"
    return LayerLine(printable(name), printable(what), layer.size)


def _firsts(maps: list[DeviceMap]) -> dict[object, tuple[int, int]]:
    """Return where each file is first on a map: the number of the map, and the start."""
    firsts: dict[object, tuple[int, int]] = {}
    for number, drawn in enumerate(maps):
        for key, start in zip(drawn.areas.keys, drawn.areas.starts, strict=True):
            firsts.setdefault(key, (number, start))
    return firsts


def _lost_file(
    loss: FileLoss, paths: Paths | None, firsts: dict[object, tuple[int, int]]
) -> LostFile:
    names = paths.paths if paths else ()
    key: FileKey = (loss.layer, loss.file, loss.what)
    subvolume = f"{loss.subvolume}/" if isinstance(loss.subvolume, int) else ""
    return LostFile(
        path=shown_path(names[0] if names else None),
        others=tuple(map(printable, names[1:])),
        layer=printable(loss.layer),
        inode=f"{subvolume}{loss.file.inode}",
        what=loss.what,
        lost=loss.lost,
        ranges=loss.ranges,
        size=loss.size,
        share=loss.share,
        shared=loss.shared,
        first=firsts.get(key),
    )
