"""Asking whoseblock, and comparing what it says with what is expected."""

import json
import subprocess
import sys
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import msgspec
from tests.support.expected_rows import Expectation, normal

from whoseblock.fs.base import Answer

__all__ = ["answer_json", "lookup_json", "same"]


def answer_json(answer: Answer) -> dict[str, Any]:
    """Return an answer as `lookup --json` writes it."""
    plain: dict[str, Any] = msgspec.to_builtins(answer)
    return plain


def same(
    answer: dict[str, Any],
    question: tuple[int, int],
    expectation: Expectation,
    *,
    paths: bool = True,
    complete: bool = True,
) -> None:
    """Assert that every row and every path are those expected, and nothing is in doubt."""
    assert (answer["start"], answer["length"]) == question
    rows = [normal(row, paths=paths) for row in answer["owners"]]
    expected = expectation.rows(*question, paths=paths)
    if rows != expected:
        # Printing two long lists would bury the difference.
        for number, (row, right) in enumerate(zip_longest(rows, expected)):
            assert row == right, f"row {number} of {question}: {row} instead of {right}"
    assert answer["complete"] is complete, answer["notes"]
    assert complete or answer["notes"], "incomplete, and no word about why"


def lookup_json(
    image: Path, questions: Sequence[tuple[int, int]], *options: str
) -> list[dict[str, Any]]:
    """Ask the command line program, with the ranges on its standard input."""
    ranges = "".join(f"{start}+{length}\n" for start, length in questions)
    done = subprocess.run(
        [sys.executable, "-m", "whoseblock", "lookup", image, "--ranges", "-", "--json", *options],
        input=ranges.encode(),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return [json.loads(line) for line in done.stdout.splitlines()]
