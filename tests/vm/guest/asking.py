"""Questions to whoseblock as people ask them, and to those who know independently."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.kernel_oracle import getfsmap, walk
from tests.support.tools import CHECKOUT
from tests.support.truth import Row

__all__ = [
    "blocks_of",
    "files_at",
    "largest_free",
    "lookup",
    "metadata_of",
    "one",
    "owners_at",
    "rows",
    "way",
]

Json = dict[str, Any]


def lookup(*arguments: str, stdin: str = "") -> list[Json]:
    """Ask ``whoseblock lookup --json``; give its answers, and print them for whom it concerns."""
    command = [sys.executable, "-m", "whoseblock", "lookup", *arguments, "--json"]
    done = subprocess.run(
        command, input=stdin, capture_output=True, text=True, check=False, cwd=CHECKOUT
    )
    print(f"$ whoseblock lookup {' '.join(arguments)}\n{done.stdout}{done.stderr}")
    assert done.returncode == 0, f"it gave {done.returncode}: {done.stderr}"
    return [json.loads(line) for line in done.stdout.splitlines()]


def one(*arguments: str, stdin: str = "") -> Json:
    """Ask a question that has one answer."""
    (answer,) = lookup(*arguments, stdin=stdin)
    return answer


def rows(answer: Json, kind: str = "file") -> list[Json]:
    """Return the rows of an answer that are of a kind."""
    return [row for row in answer["owners"] if row["kind"] == kind]


def way(answer: Json) -> dict[str, int]:
    """Return the way of an answer's first byte by the names of the layers."""
    return {step["layer"]: step["start"] for step in answer["via"]}


def files_at(answer: Json) -> dict[int, list[str]]:
    """Return the files of an answer with their paths."""
    return {row["inode"]: row["paths"] for row in rows(answer)}


def blocks_of(folder: Path, inode: int) -> list[Row]:
    """Return the data extents of a file by GETFSMAP, in the order of the file."""
    rows_of_it = (row for row in getfsmap(os.fsencode(folder)) if row.inode == inode)
    return sorted((row for row in rows_of_it if not row.extent_map), key=lambda row: row.offset)


def largest_free(folder: Path) -> Row:
    """Return the largest free range by GETFSMAP."""
    free = (row for row in getfsmap(os.fsencode(folder)) if row.kind == "free")
    return max(free, key=lambda row: row.length)


def metadata_of(folder: Path, what: str) -> Row:
    """Return an extent of a class of metadata by GETFSMAP, not of the first group."""
    return [row for row in getfsmap(os.fsencode(folder)) if row.kind == what][-1]


def owners_at(folder: Path, offset: int) -> dict[int, list[str]]:
    """Return the files that own a byte of the device, with all paths, by GETFSMAP and a walk."""
    walked = walk(os.fsencode(folder))
    return {
        row.inode: sorted(walked[row.inode].paths)
        for row in getfsmap(os.fsencode(folder))
        if row.kind == "file" and row.start <= offset < row.end
    }
