"""Read the status of the daemon, from outside it."""

import errno
import json
import os
import socket
import time
from pathlib import Path
from typing import Any, Final

from whoseblock.errors import PrivilegeError, TargetError

__all__ = ["not_running", "read_status"]

_PIECE: Final = 1 << 16
#: The daemon answers at once, with some kilobytes.
_PATIENCE_S: Final = 10.0
_MAX_STATUS: Final = 1 << 20


def read_status(folder: Path) -> dict[str, Any]:
    """Query the daemon of a state folder, or read the status that the last daemon saved.

    Raises `TargetError` if there is none, or if it is damaged, and `PrivilegeError`.
    """
    try:
        status: dict[str, Any] = json.loads(_ask(folder))
    except ValueError as error:
        raise TargetError(f"the status of the daemon of {str(folder)!r} is damaged") from error
    return status


def not_running(folder: Path) -> TargetError:
    """Return the error for a daemon that does not run."""
    return TargetError(
        f"no daemon runs with the state folder {str(folder)!r}",
        hint="whoseblock watch starts one; name its folder with --state",
    )


def _ask(folder: Path) -> bytes:
    try:
        with socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(_PATIENCE_S)
            peer.connect(str(folder / "socket"))
            return _receive(peer)
    except TimeoutError as error:
        raise TargetError(f"the daemon of {str(folder)!r} does not answer") from error
    except (FileNotFoundError, ConnectionRefusedError):
        pass
    except OSError as error:
        why = error.strerror or str(error)
        message = f"the daemon of {str(folder)!r} cannot be queried: {why}"
        if isinstance(error, PermissionError):
            raise PrivilegeError(message) from error
        raise TargetError(message) from error
    try:
        # Not one that waits for a writer.
        saved = os.open(folder / "status.json", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(saved, "rb") as file:
            return file.read(_MAX_STATUS)
    except OSError as error:
        raise not_running(folder) from error


def _receive(peer: socket.socket) -> bytes:
    """Return what a daemon sends; raises `TimeoutError`, and `OSError` if it sends too much."""
    deadline = time.monotonic() + _PATIENCE_S
    pieces, size = [], 0
    while piece := peer.recv(_PIECE):
        pieces.append(piece)
        size += len(piece)
        if size > _MAX_STATUS:
            raise OSError(errno.EMSGSIZE, "its status is too long")
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        peer.settimeout(left)
    return b"".join(pieces)
