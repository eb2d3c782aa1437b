"""``lookup --summary``: sums compared with a count byte by byte, and lists that are safe to use."""

import csv
import io
import json
import os
import random
import subprocess
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.commands import whoseblock
from tests.support.expected_rows import Expectation
from tests.support.filled_images import Zoo
from tests.support.mounts import mounted
from tests.support.truth import Truth

from whoseblock.cli.presentation.summary import quoted
from whoseblock.summary import KINDS


def printed(*words: str | Path) -> str:
    done = whoseblock("lookup", *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def asked(
    zoo: Zoo, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Expectation, Path, list[Any]]:
    """Provide an image's oracle, and a list of ranges that overlap and repeat each other."""
    truth = zoo.to_mount("4k")
    rng = random.Random("summary")
    rows = rng.choices([row for row in truth.rows if row.kind != "free"], k=150)
    ranges = [(row.start + rng.randrange(row.length), rng.randint(1, 40_000)) for row in rows]
    ranges += [(rng.randrange(truth.superblock.size - 200_000), 200_000) for _ in range(20)]
    ranges += ranges[:10]
    path = tmp_path_factory.mktemp("summary") / "ranges"
    path.write_text("".join(f"{start}+{length}\n" for start, length in ranges))
    return Expectation(truth), path, ranges


def sizes_of(truth: Truth) -> dict[int, int]:
    """Ask the kernel for the size of every file."""
    with mounted(truth.image, "ro", "norecovery") as root:
        return {
            number: os.lstat(root + os.fsencode(inode.paths[0])).st_size
            for number, inode in truth.inodes.items()
            if inode.paths
        }


def test_every_byte_is_counted_once(asked: tuple[Expectation, Path, list[Any]]) -> None:
    oracle, path, ranges = asked
    sizes = sizes_of(oracle.truth)
    told = json.loads(printed(oracle.truth.image, "--ranges", path, "--summary", "--json"))
    edges = sorted({edge for start, length in ranges for edge in (start, start + length)})
    totals: dict[str, int] = defaultdict(int)
    files: dict[tuple[int, str], int] = defaultdict(int)
    data: dict[int, int] = defaultdict(int)
    for start, end in pairwise(edges):
        if not any(at <= start and end <= at + length for at, length in ranges):
            continue
        rows = oracle.rows(start, end - start)
        spans = {edge for row in rows for edge in (row["start"], row["start"] + row["length"])}
        inner = sorted(spans)
        for low, high in pairwise(inner):
            here = [row for row in rows if row["start"] <= low < row["start"] + row["length"]]
            kinds = ["unwritten" if row.get("unwritten") else row["kind"] for row in here]
            totals[min(kinds, key=KINDS.index)] += high - low
        for row in rows:
            if row["kind"] == "file" and not row["unwritten"]:
                files[row["inode"], row["what"]] += row["length"]
                if row["what"] == "data":
                    size = sizes[row["inode"]]
                    data[row["inode"]] += max(min(row["length"], size - row["file_offset"]), 0)
    assert {kind: count for kind, count in told["totals"].items() if count} == totals
    assert told["bytes"] == sum(totals.values())
    assert {(file["inode"], file["what"]): file["bytes"] for file in told["files"]} == files
    for file in told["files"]:
        assert file["paths"] == oracle.paths(file["inode"])
        if file["what"] == "data":
            assert file["data_bytes"] == data[file["inode"]]
            size = sizes[file["inode"]]
            assert file["size"] == size
            assert file["share"] == (data[file["inode"]] / size if size else None)
    assert told["complete"] is True


def test_the_table_adds_up(asked: tuple[Expectation, Path, list[Any]]) -> None:
    oracle, path, _ = asked
    page = printed(oracle.truth.image, "--ranges", path, "--summary")
    table, totals = page.rsplit("\n\n", 1)
    *parts, whole = (int(line.split()[0]) for line in totals.splitlines())
    assert sum(parts) == whole
    assert "\x1b" not in table
    assert table.splitlines()[0].split()[:3] == ["BYTES", "LOST", "RANGES"]


def test_the_list_as_csv(asked: tuple[Expectation, Path, list[Any]], tmp_path: Path) -> None:
    oracle, path, _ = asked
    out = tmp_path / "damaged.csv"
    printed(oracle.truth.image, "--ranges", path, "--output", out)
    text = out.read_text()
    rows = list(csv.DictReader(io.StringIO(text)))
    # Every record is one line, whatever names hold: it can be gone through line by line.
    assert len(text.splitlines()) == len(rows) + 1
    for row in rows:
        assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in row.values())
        paths = oracle.paths(int(row["inode"]))
        names = [row["shell"], row["other_paths"]]
        done = subprocess.run(
            ["bash", "-c", f"printf '%s\\0' {' '.join(names)}"], capture_output=True, check=True
        )
        words = [os.fsdecode(word) for word in done.stdout.split(b"\0")[:-1]]
        assert (words if paths else []) == paths


def test_the_list_as_json(asked: tuple[Expectation, Path, list[Any]], tmp_path: Path) -> None:
    oracle, path, _ = asked
    out = tmp_path / "damaged.json"
    printed(oracle.truth.image, "--ranges", path, "--output", out)
    for file in json.loads(out.read_text()):
        assert file["paths"] == oracle.paths(file["inode"])


def test_nothing_damaged_is_an_empty_list(zoo: Zoo, tmp_path: Path) -> None:
    truth = zoo.filled("4k")
    free = next(row for row in truth.rows if row.kind == "free")
    for name in ("none.csv", "none.json"):
        out = tmp_path / name
        printed(truth.image, f"{free.start}+512", "--output", out)
        assert len(out.read_text().splitlines()) == 1


@given(name=st.binary(min_size=1, max_size=60).filter(lambda raw: b"\0" not in raw))
def test_a_quoted_path_is_one_word(name: bytes) -> None:
    path = "/" + os.fsdecode(name)
    command = f"printf '%s' {quoted(path)}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, check=True)
    assert done.stdout == os.fsencode(path)
