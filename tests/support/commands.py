"""Running ``whoseblock`` as a program, as a user does."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["COMMAND", "lookup", "whoseblock"]

COMMAND = [sys.executable, "-m", "whoseblock"]


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
