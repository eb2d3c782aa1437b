"""Running commands as whole processes, and comparing them pair by pair."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

__all__ = [
    "Command",
    "Comparison",
    "Result",
    "Run",
    "Table",
    "Usage",
    "compare",
    "measure_usage",
    "measured",
    "peak_memory",
]


Command = Sequence[str | Path]

#: Linux counts the memory that a process had before exec(2) to what it became.  This small process
#: stands between, so that the benchmark's own memory is not taken for that of what it runs.
_GO_BETWEEN = """
import os, resource, subprocess, sys
status = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime, used.ru_maxrss)
sys.exit(status)
"""


class Result(NamedTuple):
    """One line of the table: what was measured, ours and theirs, and what was to be reached."""

    what: str
    ours: float
    theirs: float
    unit: str
    ratio: float
    target: float
    at_least: bool

    @property
    def met(self) -> bool:
        """Whether the target was reached."""
        return self.ratio >= self.target if self.at_least else self.ratio <= self.target


class Table(NamedTuple):
    """Numbers without a target: the heads of the columns, and the rows."""

    name: str
    heads: tuple[str, ...]
    rows: Sequence[tuple[str | float, ...]]


class Run(NamedTuple):
    """One run of a command: wall seconds, and what it printed."""

    seconds: float
    output: bytes


def _environment() -> dict[str, str]:
    """Return an environment in which Python keeps bytecode, as where a package is installed."""
    kept = dict(os.environ)
    kept.pop("PYTHONDONTWRITEBYTECODE", None)
    return kept


def measured(command: Command, stdin: Path | None = None) -> Run:
    """Run a command to its end; raises `CalledProcessError` if it fails."""
    with tempfile.TemporaryFile() as sink, (stdin or Path(os.devnull)).open("rb") as source:
        begun = time.perf_counter()
        subprocess.run(command, stdin=source, stdout=sink, check=True, env=_environment())
        seconds = time.perf_counter() - begun
        sink.seek(0)
        return Run(seconds, sink.read())


class Usage(NamedTuple):
    """The use of a process: seconds of processors, and bytes of memory resident at most."""

    processor: float
    memory: int


def measure_usage(command: Command) -> Usage:
    """Run a command to its end; raises `CalledProcessError` if it fails."""
    through = [sys.executable, "-I", "-S", "-c", _GO_BETWEEN, *command]
    done = subprocess.run(through, stdout=subprocess.PIPE, check=True, env=_environment())
    processor, memory = done.stdout.split()
    return Usage(float(processor), int(memory) * 1024)


def peak_memory(command: Command) -> int:
    """Run a command to its end, and give the most memory that it ever had resident, in bytes."""
    return measure_usage(command).memory


class Comparison(NamedTuple):
    """The medians of both sides, and the median of the ratios of neighbouring runs."""

    ours: float
    theirs: float
    ratio: float


def compare(
    ours: Callable[[], float], theirs: Callable[[], float], *, rounds: int = 5
) -> Comparison:
    """Measure both in turn, one round uncounted; the ratio is theirs by ours.

    A machine that others use too is slow at times: runs side by side are slowed alike.
    """
    ours(), theirs()
    pairs = [(ours(), theirs()) for _ in range(rounds)]
    return Comparison(
        statistics.median(mine for mine, _ in pairs),
        statistics.median(peer for _, peer in pairs),
        statistics.median(peer / mine for mine, peer in pairs),
    )
