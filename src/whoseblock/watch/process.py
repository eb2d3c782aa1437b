"""The process of the daemon, ``python -m whoseblock.watch``, and its command line.

``whoseblock watch`` replaces itself by this process, because a daemon may run for months: the
modules of the command line would take two megabytes all the time.
"""

import ctypes
import gc
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn

from whoseblock.watch.daemon import Daemon, Options

__all__ = ["become_daemon", "options_of", "run_daemon", "words_of"]

_PR_SET_NAME: Final = 15  # linux/prctl.h


def words_of(options: Options) -> list[str]:
    """Return options as words of a command line, each ``--name=value``."""
    port = options.metrics_port
    values = {
        "state": os.fspath(options.state),
        "policy": options.policy and os.fspath(options.policy),
        "journal": options.journal,
        "interval": repr(options.interval),
        "metrics-port": port and f"{port[0]}:{port[1]}",
        "metrics-file": options.metrics_file and os.fspath(options.metrics_file),
        "root": options.root,
        "version": options.version,
    }
    return [f"--{name}={value}" for name, value in values.items() if value is not None]


def options_of(words: Sequence[str]) -> Options:
    """Return the options that `words_of` made words of."""
    given = dict(word.removeprefix("--").split("=", 1) for word in words)
    address, _, port = given.get("metrics-port", "").rpartition(":")
    return Options(
        state=Path(given["state"]),
        policy=_path(given.get("policy")),
        journal=given.get("journal"),
        interval=float(given["interval"]),
        metrics_port=(address, int(port)) if port else None,
        metrics_file=_path(given.get("metrics-file")),
        root=given["root"],
        version=given["version"],
    )


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


def become_daemon(options: Options) -> NoReturn:
    """Replace this process by that of the daemon; raises OSError."""
    sys.stdout.flush()
    sys.stderr.flush()
    # Isolated from the current folder, in which others may have put modules (-P).
    command = [sys.executable, "-P", "-m", "whoseblock.watch", *words_of(options)]
    os.execv(sys.executable, command)  # noqa: S606 - no shell is wanted


def run_daemon(words: Sequence[str]) -> None:
    """Run the daemon in this process, with the words that `words_of` made."""
    # As its journal names the command, and as ps(1) shows the process.
    sys.argv = ["whoseblock", "watch", *words]
    ctypes.CDLL(None).prctl(_PR_SET_NAME, b"whoseblock")
    # Workers inherit it, and make many small objects without cycles.
    gc.set_threshold(100_000, 50, 100)
    Daemon(options_of(words)).run()
