"""``whoseblock map``, and the tables of ``whoseblock lookup``."""

from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from tests.support.commands import lookup, whoseblock
from tests.support.disk_images import copy_range, partition
from tests.support.tools import run
from tests.support.xfs_images import MIB, sparse_file


def rows_in(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
    return rows


def shown(row: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a row that `lookup --json` has, as it has them."""
    names = ("kind", "start", "length", "inode", "fork", "what", "file_offset", "paths")
    return {name: row.get(name) for name in names}


@pytest.mark.parametrize("options", [[], ["--no-paths"]])
def test_a_map_has_the_rows_of_a_lookup_of_everything(
    demo_image: Path, tmp_path: Path, options: list[str]
) -> None:
    path = tmp_path / "map.parquet"
    done = whoseblock("map", demo_image, "--output", path, "--host", "here", *options)
    assert done.returncode == 0, done.stderr
    rows = rows_in(path)
    assert done.stderr == f"{len(rows)} rows in {path}\n"
    (answer,) = lookup(demo_image, f"0+{demo_image.stat().st_size}", *options)
    assert list(map(shown, rows)) == list(map(shown, answer["owners"]))
    assert {row["host"] for row in rows} == {"here"}
    assert {row["filesystem"] for row in rows} == {"xfs 07d1b10c-b10c-4b10-8b10-c0ffee000307"}


def test_the_map_of_another_filesystem(tmp_path: Path) -> None:
    image = sparse_file(tmp_path / "disk.img", 64 * MIB)
    folder = tmp_path / "content"
    folder.mkdir()
    (folder / "file").write_bytes(b"x" * 9000)
    run(["mke2fs", "-q", "-F", "-d", folder, image])
    done = whoseblock("map", image, "--output", tmp_path / "map.parquet")
    assert done.returncode == 0, done.stderr
    (answer,) = lookup(image, f"0+{64 * MIB}")
    rows = rows_in(tmp_path / "map.parquet")
    assert list(map(shown, rows)) == list(map(shown, answer["owners"]))
    assert ["/file"] in [row["paths"] for row in rows]


def test_a_disk_is_mapped_with_the_layers_of_its_rows(demo_image: Path, tmp_path: Path) -> None:
    disk = sparse_file(tmp_path / "disk.img", 400 * MIB)
    partition(disk, "label: gpt\nstart=2048, size=614400\n")
    copy_range(demo_image, 0, disk, MIB, 300 * MIB)
    done = whoseblock("map", disk, "--output", tmp_path / "map.parquet")
    assert done.returncode == 0, done.stderr
    rows = rows_in(tmp_path / "map.parquet")
    files = [row for row in rows if row["kind"] == "file"]
    assert {row["start"] - row["layer_start"] for row in files} == {MIB}
    assert {(row["device"], row["layer"]) for row in files} == {("disk.img", "disk.img1")}
    assert ["/a"] in [row["paths"] for row in files]
    assert sum(row["length"] for row in rows if row["kind"] == "outside") == 100 * MIB


def test_the_rows_of_a_lookup_become_a_table(demo_image: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    done = whoseblock("lookup", demo_image, "307p", "0+64K", "--output", path)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    answers = lookup(demo_image, "307p", "0+64K")
    wanted = [row for answer in answers for row in answer["owners"]]
    assert list(map(shown, rows_in(path))) == list(map(shown, wanted))


@pytest.mark.parametrize("option", ["--json", "--summary"])
def test_options_without_effect_on_a_table_are_refused(
    demo_image: Path, tmp_path: Path, option: str
) -> None:
    path = tmp_path / "rows.parquet"
    done = whoseblock("lookup", demo_image, "307p", "--output", path, option)
    assert done.returncode == 2
    assert f"{option} has no effect" in done.stderr


def test_another_suffix_is_refused(demo_image: Path, tmp_path: Path) -> None:
    done = whoseblock("map", demo_image, "--output", tmp_path / "map.txt")
    assert done.returncode == 2
    assert ".parquet or .arrow" in done.stderr
