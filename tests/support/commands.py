"""Running ``whoseblock`` as a program, as a user does."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["COMMAND", "Run", "lookup", "runner_in", "whoseblock"]

COMMAND = [sys.executable, "-m", "whoseblock"]
Run = Callable[..., subprocess.CompletedProcess[str]]


def whoseblock(*words: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run whoseblock; the caller looks at its exit code."""
    return subprocess.run(
        [*COMMAND, *words], input=stdin, capture_output=True, encoding="utf-8", check=False
    )


def lookup(*words: str | Path) -> list[dict[str, Any]]:
    """Run ``whoseblock lookup --json``, which must succeed; return its answers."""
    done = whoseblock("lookup", *words, "--json")
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def runner_in(folder: Path) -> Run:
    """Return a function that runs whoseblock in a folder, with any bytes on standard input."""

    def run(*words: str, stdin: str | bytes = "") -> subprocess.CompletedProcess[str]:
        data = stdin if isinstance(stdin, bytes) else stdin.encode()
        done = subprocess.run(
            [*COMMAND, *words], input=data, capture_output=True, check=False, cwd=folder
        )
        out, err = done.stdout.decode(), done.stderr.decode()
        return subprocess.CompletedProcess(words, done.returncode, out, err)

    return run
