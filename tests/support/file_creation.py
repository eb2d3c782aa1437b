"""Creating files at full speed, and noting for how long it stood still.

``python -m tests.support.file_creation FOLDER`` goes on until its standard input ends.  Then it
prints how many files it made and the longest time, in seconds, that one of them took.
"""

import contextlib
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.support.tools import CHECKOUT

__all__ = ["Tempo", "creating"]

_KEPT = 200


class Tempo(NamedTuple):
    """The outcome of one process."""

    files: int
    longest_s: float


@contextlib.contextmanager
def creating(*folders: Path) -> Iterator[list[Tempo]]:
    """Start a process that creates files in each folder; the list is filled at the end."""
    tempos: list[Tempo] = []
    with contextlib.ExitStack() as stack:
        children = []
        for folder in folders:
            child = subprocess.Popen(
                [sys.executable, "-m", "tests.support.file_creation", folder],
                cwd=CHECKOUT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(child)
            stack.callback(child.kill)
            assert child.stdout is not None
            assert child.stdout.readline()
            children.append(child)
        yield tempos
        for child in children:
            said, _ = child.communicate(timeout=60)
            files, longest = said.split()
            tempos.append(Tempo(int(files), float(longest)))


def _main(folder: str) -> None:
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    made, longest = 0, 0.0
    content = os.urandom(5000)
    while not select.select([sys.stdin], [], [], 0)[0]:
        begun = time.monotonic()
        with open(f"{folder}/{made}", "wb") as file:
            file.write(content)
        if made >= _KEPT:
            os.unlink(f"{folder}/{made - _KEPT}")
        longest = max(longest, time.monotonic() - begun)
        made += 1
    sys.stdout.write(f"{made} {longest}\n")


if __name__ == "__main__":
    _main(sys.argv[1])
