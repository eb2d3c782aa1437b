"""Record batches of Arrow, made of answers."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pyarrow as pa

from whoseblock.columns import PlacedColumns
from whoseblock.fs.arrays import FORKS, KINDS, WHATS
from whoseblock.fs.base import Answer, Owner
from whoseblock.fs.stream import LeadingRows
from whoseblock.tables.schema import arrow_schema

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["BATCH", "Origin", "record_batches"]

#: The rows of a batch, at most.
BATCH: Final = 1 << 16
#: The fields of a row that a table has as they are.
_FIELDS: Final = (
    "start",
    "length",
    "kind",
    "what",
    "fork",
    "subvolume",
    "inode",
    "file_offset",
    "file_length",
    "encoding",
    "unwritten",
    "shared",
    "detail",
)
#: The types of the values that a field of a row may have, other than unset ones.
_VALUES: Final = (int, str)


class Origin(NamedTuple):
    """The values that all rows of a table have: where they come from."""

    host: str
    filesystem: str | None
    device: str
    disk_model: str | None = None
    disk_serial: str | None = None


def record_batches(
    stream: Iterable[LeadingRows | Answer | PlacedColumns], origin: Origin
) -> Iterator[pa.RecordBatch]:
    """Convert answers to record batches of at most `BATCH` rows, without holding all.

    The rows of an answer that come before its last ones are held until it ends: only then is it
    known whether it is complete.  They are as many as the longest answer has.
    """
    schema = arrow_schema()
    rows = _Rows(origin)
    for item in stream:
        if isinstance(item, PlacedColumns):
            yield from rows.flush(schema)
            yield from _column_batches(item, origin, schema)
            continue
        rows.add(item)
        if len(rows) >= BATCH:
            yield from rows.flush(schema)
    yield from rows.flush(schema)


class _Rows:
    """Rows that wait for a batch, as a list for each column."""

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self._ended: list[tuple[Owner, Answer]] = []
        self._open: list[Owner] = []

    def __len__(self) -> int:
        return len(self._ended)

    def add(self, item: LeadingRows | Answer) -> None:
        """Add the rows of an item."""
        if isinstance(item, LeadingRows):
            self._open += item.owners
            return
        self._ended += ((row, item) for row in (*self._open, *item.owners))
        self._open = []

    def flush(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        """Yield what has ended, in batches."""
        for at in range(0, len(self._ended), BATCH):
            yield _batch_of(self._ended[at : at + BATCH], self._origin, schema)
        self._ended = []


def _batch_of(
    rows: list[tuple[Owner, Answer]], origin: Origin, schema: pa.Schema
) -> pa.RecordBatch:
    columns: dict[str, list[Any]] = {
        name: [_value(getattr(row, name, None)) for row, _ in rows] for name in _FIELDS
    }
    columns["file_length"] = [
        row.length if length is None and offset is not None else length
        for (row, _), length, offset in zip(
            rows, columns["file_length"], columns["file_offset"], strict=True
        )
    ]
    columns["paths"] = [_paths(row) for row, _ in rows]
    ways = [row.via[-1] if isinstance(row.via, tuple) and row.via else None for row, _ in rows]
    columns["device"] = [
        _text(row.via[0].layer if isinstance(row.via, tuple) and row.via else origin.device)
        for row, _ in rows
    ]
    columns["layer"] = [None if way is None else _text(way.layer) for way in ways]
    columns["layer_start"] = [None if way is None else way.start for way in ways]
    columns["complete"] = [answer.complete for _, answer in rows]
    columns["notes"] = [[_text(note) for note in answer.notes] for _, answer in rows]
    arrays = [
        pa.array(columns[field.name], field.type)
        if field.name in columns
        else _constant(getattr(origin, field.name), len(rows), field.type)
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _value(value: object) -> int | str | None:
    """Return a value for a table; None for what a row does not have."""
    if isinstance(value, str):
        return _text(value)
    return value if isinstance(value, _VALUES) else None


def _paths(row: Owner) -> list[str] | None:
    paths = getattr(row, "paths", None)
    return list(map(_text, paths)) if isinstance(paths, tuple) else None


def _text(text: str) -> str:
    r"""Encode a name in UTF-8: other bytes become ``\xNN``, and each backslash is doubled."""
    if "\\" not in text and text.isascii():
        return text
    data = text.replace("\\", "\\\\").encode("utf-8", "surrogateescape")
    return data.decode("utf-8", "backslashreplace")


def _constant(value: str | None, rows: int, kind: pa.DataType) -> pa.Array:
    """Return a column that has one value in all rows."""
    if value is None:
        return pa.nulls(rows, kind)
    return pa.repeat(_text(value), rows)


# ------------------------------------------------------------------ columns


def _column_batches(
    placed: PlacedColumns, origin: Origin, schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
    """Convert answers that are columns; those of odd questions are made as objects."""
    import numpy as np

    columns = placed.columns
    rows = columns.rows
    odd = columns.is_odd[rows.question]
    ends = np.flatnonzero(np.diff(odd)) + 1
    for first, last in zip([0, *ends.tolist()], [*ends.tolist(), odd.size], strict=True):
        if first == last:
            continue
        if odd[first]:
            objects = _Rows(origin)
            for number in np.unique(rows.question[first:last]).tolist():
                objects.add(columns.answer(number))
            yield from objects.flush(schema)
            continue
        for at in range(first, last, BATCH):
            yield _batch_of_columns(placed, slice(at, min(at + BATCH, last)), origin, schema)


def _batch_of_columns(
    placed: PlacedColumns, part: slice, origin: Origin, schema: pa.Schema
) -> pa.RecordBatch:
    import numpy as np

    rows, common = placed.columns.rows, placed.columns.common
    is_file = rows.kind[part] == KINDS.index("file")
    has_offset = is_file & (rows.file_offset[part] >= 0)
    count = is_file.size
    notes = pa.array([[_text(note) for note in common.notes]], pa.list_(pa.string()))
    arrays = {
        "start": pa.array(rows.start[part]),
        "length": pa.array(rows.length[part]),
        "kind": _words(rows.kind[part], KINDS),
        "what": _words(rows.what[part], WHATS),
        "fork": _words(rows.fork[part], FORKS),
        "inode": pa.array(rows.inode[part], mask=~is_file),
        "subvolume": pa.array(rows.subvolume[part], mask=rows.subvolume[part] == 0),
        "file_offset": pa.array(rows.file_offset[part], mask=~has_offset),
        "file_length": pa.array(rows.length[part], mask=~has_offset),
        "unwritten": pa.array(rows.unwritten[part], mask=~is_file),
        "shared": pa.array(rows.shared[part], mask=~is_file),
        "complete": pa.array(np.full(count, common.complete)),
        "notes": notes.take(pa.array(np.zeros(count, np.int32))),
    }
    if placed.way:
        layer, distance = placed.way[-1]
        arrays["device"] = _constant(placed.way[0][0], count, pa.string())
        arrays["layer"] = _constant(layer, count, pa.string())
        arrays["layer_start"] = pa.array(rows.start[part] + distance)
    every = [
        arrays[field.name]
        if field.name in arrays
        else _constant(getattr(origin, field.name, None), count, field.type)
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(every, schema=schema)


def _words(numbers: "NDArray[np.uint8]", words: tuple[str, ...]) -> pa.Array:
    """Return a column of words; number 0 of "" is null."""
    import numpy as np

    mask = numbers == words.index("") if "" in words else np.zeros(numbers.size, bool)
    return pa.array(words, pa.string()).take(pa.array(numbers.astype(np.int32), mask=mask))
