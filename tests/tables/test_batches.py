"""Tables of owners: the rows of `lookup --json`, in columns."""

import json
from array import array
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.tools import CHECKOUT

from whoseblock.columns import PlacedColumns
from whoseblock.fs.base import Answer, FileOwner, Free, LayerLocation, MetadataOwner, Unknown
from whoseblock.fs.stream import LeadingRows
from whoseblock.lookup import Lookup
from whoseblock.query import QueryList
from whoseblock.querying import QueryOptions
from whoseblock.ranges import RangeList
from whoseblock.tables.batches import BATCH, Origin, record_batches
from whoseblock.tables.schema import COLUMNS, VERSION, arrow_schema
from whoseblock.target import Target, TargetOptions

ORIGIN = Origin("host", "xfs 1", "sda", "model")
ANSWER = Answer(0, 10, complete=True, notes=(), owners=())


def rows_of(*items: LeadingRows | Answer | PlacedColumns) -> list[dict[str, Any]]:
    table = pa.Table.from_batches(record_batches(items, ORIGIN), arrow_schema())
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def file_row(paths: tuple[str, ...], start: int = 0) -> FileOwner:
    return FileOwner(
        start=start,
        length=10,
        inode=131,
        fork="data",
        what="data",
        file_offset=0,
        unwritten=False,
        shared=False,
        paths=paths,
    )


def test_what_a_row_does_not_have_is_null() -> None:
    answer = Answer(0, 10, complete=False, notes=("why",), owners=(Unknown(start=0, length=10),))
    (row,) = rows_of(answer)
    given = {name: value for name, value in row.items() if value is not None}
    assert given == {
        "host": "host",
        "filesystem": "xfs 1",
        "device": "sda",
        "disk_model": "model",
        "start": 0,
        "length": 10,
        "kind": "unknown",
        "complete": False,
        "notes": ["why"],
    }


def test_leading_rows_have_what_is_known_at_the_end() -> None:
    leading = LeadingRows(0, 20, (file_row(("/a",)),))
    last = Answer(0, 20, complete=False, notes=("late",), owners=(Free(start=10, length=10),))
    assert [(row["complete"], row["notes"]) for row in rows_of(leading, last)] == [
        (False, ["late"]),
        (False, ["late"]),
    ]


def test_the_lowest_layer_is_there() -> None:
    via = (LayerLocation("sda", 5), LayerLocation("sda1", 1))
    row = MetadataOwner(start=5, length=1, what="log", detail="d", via=via)
    (found,) = rows_of(Answer(5, 1, complete=True, notes=(), owners=(row,)))
    assert (found["layer"], found["layer_start"]) == ("sda1", 1)
    assert (found["what"], found["detail"]) == ("log", "d")


def test_more_rows_than_a_batch_are_in_several() -> None:
    rows = tuple(Free(start=at, length=1) for at in range(BATCH + 1))
    answer = Answer(0, BATCH + 1, complete=True, notes=(), owners=rows)
    sizes = [batch.num_rows for batch in record_batches([answer], ORIGIN)]
    assert sizes == [BATCH, 1]
    assert list(record_batches([], ORIGIN)) == []


@given(st.binary(min_size=1, max_size=20))
def test_a_name_of_any_bytes_can_be_read_back(name: bytes) -> None:
    row = file_row((name.decode("utf-8", "surrogateescape"),))
    (found,) = rows_of(Answer(0, 10, complete=True, notes=(), owners=(row,)))
    (text,) = found["paths"]
    parts = text.split("\\\\")
    back = b"\\".join(_bytes_of(part) for part in parts)
    assert back == name


def _bytes_of(text: str) -> bytes:
    first, *rest = text.split("\\x")
    return first.encode() + b"".join(bytes.fromhex(part[:2]) + part[2:].encode() for part in rest)


@pytest.mark.parametrize("piece", [1 << 22, 1 << 16])
def test_columns_and_objects_make_the_same_table(demo_image: Path, piece: int) -> None:
    with Target(str(demo_image), TargetOptions()) as target, Lookup(target.open_leaf) as finder:
        layer = target.layer
        assert layer is not None
        starts = range(0, layer.size, piece)
        pieces = RangeList.of((start, min(piece, layer.size - start)) for start in starts)
        options = QueryOptions(paths=False, bare=True)
        queries = QueryList(layer, pieces, "", array("Q"), named=False)
        stream = list(finder.stream_columns(queries, options))
        assert any(isinstance(item, PlacedColumns) for item in stream)
        answers = finder.leaf(layer).owners_many(pieces, paths=False)
        assert rows_of(*stream) == rows_of(*answers)


def test_the_documentation_has_every_column() -> None:
    text = (CHECKOUT / "docs/tables.md").read_text("utf-8")
    types = {"text": "text", "texts": "list of texts", "int": "int64", "unsigned": "uint64"}
    for one in COLUMNS:
        kind = types.get(one.kind, one.kind)
        assert f"| `{one.name}` | {kind} | {one.meaning} |" in text
    assert json.loads(arrow_schema().metadata[b"whoseblock.schema"]) == VERSION
