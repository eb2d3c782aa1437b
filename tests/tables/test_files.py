"""Files of tables: complete, or not there."""

import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet
import pytest

from whoseblock.errors import OutputError
from whoseblock.fs.base import Answer, Free
from whoseblock.tables.batches import Origin, record_batches
from whoseblock.tables.files import dataset_file, write_table


def batches(rows: int = 3, host: str = "host") -> Iterator[pa.RecordBatch]:
    owners = tuple(Free(start=at, length=1) for at in range(rows))
    answer = Answer(0, rows, complete=True, notes=(), owners=owners)
    yield from record_batches([answer], Origin(host, "xfs 1", "sda"))


@pytest.mark.parametrize("name", ["owners.parquet", "owners.arrow"])
@pytest.mark.parametrize("rows", [0, 3])
def test_a_table_is_read_back(tmp_path: Path, name: str, rows: int) -> None:
    path = tmp_path / name
    assert write_table(path, batches(rows) if rows else iter(())) == rows
    if path.suffix == ".arrow":
        with pa.OSFile(str(path)) as file:
            table = pa.ipc.open_file(file).read_all()
    else:
        table = pyarrow.parquet.read_table(path)
    assert table["start"].to_pylist() == list(range(rows))
    assert path.stat().st_mode & 0o077 == 0o066 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_table_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "owners.parquet"
    path.write_text("before")

    def failing() -> Iterator[pa.RecordBatch]:
        yield from batches()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_table(path, failing())
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["owners.parquet"]


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        write_table(tmp_path / "none" / "owners.parquet", batches())


def test_the_maps_of_several_hosts_are_one_dataset(tmp_path: Path) -> None:
    for host in ("a", "b/=% c"):
        path = dataset_file(tmp_path, host, "xfs 1")
        path.parent.mkdir(parents=True)
        write_table(path, batches(host=host))
    found = pyarrow.dataset.dataset(tmp_path, partitioning="hive").to_table()
    assert sorted(set(found["host"].to_pylist())) == ["a", "b/=% c"]
    assert found.num_rows == 6
