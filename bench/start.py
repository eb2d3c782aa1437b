"""The processor time of one lookup as a process: mostly the start of Python, and imports."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from demo.demo import unpack

from bench.measure import Command, Result, Table, measure_usage

__all__ = ["measure_all"]

#: The least of so many runs counts: nothing makes a process faster than it is.
_RUNS: Final = 30
#: `--version` may take so many milliseconds more than the import of click.
_VERSION_MS: Final = 5.0
_PYTHON: Final = [sys.executable, "-c"]
_WHOSEBLOCK: Final = [sys.executable, "-m", "whoseblock"]


def measure_all(folder: Path) -> Iterator[Result | Table]:
    """Measure processes that do little."""
    image = folder / "demo.img"
    unpack(image)
    bare, click = _least([*_PYTHON, "pass"]), _least([*_PYTHON, "import click"])
    version = _least([*_WHOSEBLOCK, "--version"])
    lookup = _least([*_WHOSEBLOCK, "lookup", image, "307p", "--json"])
    summary = _least([*_WHOSEBLOCK, "lookup", image, "307p", "--summary"])
    rows = [
        ("python -c pass", bare),
        ("python -c 'import click'", click),
        ("whoseblock --version", version),
        ("whoseblock lookup IMAGE 307p --json, without click", lookup),
        ("whoseblock lookup IMAGE 307p --summary, with click", summary),
    ]
    yield Table("start", ("process", "ms of processor"), rows)
    yield Result(
        "one lookup as a process (by python -c pass)",
        lookup, bare, "ms", lookup / bare, 4, at_least=False,
    )  # fmt: skip
    yield Result(
        f"--version (by import click and {_VERSION_MS:g} ms)",
        version, click + _VERSION_MS, "ms", version / (click + _VERSION_MS), 1, at_least=False,
    )  # fmt: skip


def _least(command: Command) -> float:
    return min(measure_usage(command).processor for _ in range(_RUNS)) * 1e3
