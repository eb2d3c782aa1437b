"""The owners of a whole device, as a table."""

from array import array
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from whoseblock.errors import NotAFilesystemError
from whoseblock.fs.base import Answer, Progress
from whoseblock.fs.driver import Volume
from whoseblock.fs.stream import LeadingRows
from whoseblock.lookup import Lookup
from whoseblock.query import QueryList
from whoseblock.querying import QueryOptions, StreamItem
from whoseblock.ranges import RangeList
from whoseblock.stack.base import MAX_DEPTH, Layer
from whoseblock.stack.kernel.host import Host

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa

    from whoseblock.columns import PlacedColumns
    from whoseblock.tables.batches import Origin

__all__ = ["find_origin", "map_batches"]

#: The bytes that are asked about at once; an extent that crosses a multiple of it has two rows.
PIECE: Final = 1 << 30


def map_batches(
    finder: Lookup, layer: Layer, origin: "Origin", *, paths: bool, progress: Progress
) -> "Iterator[pa.RecordBatch]":
    """Yield the owners of all bytes of a layer, in order, without holding all of them."""
    from whoseblock.tables.batches import record_batches

    # A mounted filesystem without a block device has no size but its own.
    size = layer.size if layer.segments else min(layer.size, _size_of(finder, layer))
    pieces = RangeList.of((start, min(PIECE, size - start)) for start in range(0, size, PIECE))
    queries = QueryList(layer, pieces, "", array("Q"), named=False)
    options = QueryOptions(paths=paths, bare=True)

    def counted() -> "Iterator[StreamItem | PlacedColumns]":
        done = 0
        for item in finder.stream_columns(queries, options):
            if isinstance(item, Answer):
                done = item.start + item.length
            elif not isinstance(item, LeadingRows):
                done = sum(item.columns.questions[-1])
            yield item
            progress("MiB mapped", done >> 20, size >> 20)

    return record_batches(counted(), origin)


def _size_of(finder: Lookup, layer: Layer) -> int:
    """Return the size of a leaf in bytes; that of its device, unless it has none."""
    space = finder.leaf(layer)
    return layer.size if layer.readable else space.device_size


def find_origin(finder: Lookup, layer: Layer, host: Host, host_name: str) -> "Origin":
    """Return what all rows of a layer have: the host, the filesystem if there is one, the disk."""
    from whoseblock.tables.batches import Origin

    filesystem = None
    if not layer.segments:
        with suppress(NotAFilesystemError):
            space = finder.leaf(layer)
            filesystem = space.identity if isinstance(space, Volume) else None
    model = serial = None
    if (disk := _find_disk(host, layer.name)) is not None:
        model = (host.read_text(disk / "device/model") or "").strip() or None
        serial = (
            host.read_text(disk / "device/serial") or host.read_text(disk / "serial") or ""
        ).strip() or None
    return Origin(host_name, filesystem, layer.name, model, serial)


def _find_disk(host: Host, layer: str) -> Path | None:
    """Return the sysfs folder of the only disk that a layer is on; None if there are several."""
    folder = host.find_device_folder(host.find_device_by_layer(layer))
    for _ in range(MAX_DEPTH):
        if folder is None:
            break
        if (folder / "partition").exists():
            folder = folder.parent
        below = list((folder / "slaves").glob("*"))
        if not below:
            return folder
        if len(below) > 1:
            return None
        folder = below[0].resolve()
    return None
