"""Identify the machine, user and process that write to the journal."""

import os
import re
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

from whoseblock.process_stat import read_start_time

__all__ = [
    "Host",
    "Process",
    "lives",
    "this_host",
    "this_process",
    "without_passwords",
]

_PROC: Final = Path("/proc")
# From a scheme's :// and a user's name to the last @, since a password may hold anything.
_PASSWORD: Final = re.compile(r"(://[^:/@\s]*):.*@", re.DOTALL)
_PASSWORD_OPTION: Final = re.compile(r"(?i)\b(password=)[^&\s]*")


class Host(NamedTuple):
    """A machine; clones share its ``machine_id``, unrelated machines may share its name."""

    name: str
    machine_id: str = ""


class Process(NamedTuple):
    """A process: its pid, and ``name``, which identifies it beyond its life."""

    pid: int
    name: str


def this_host() -> Host:
    """Return this machine."""
    for path in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        try:
            return Host(socket.gethostname(), Path(path).read_text("ascii").strip())
        except (OSError, UnicodeDecodeError):
            continue
    return Host(socket.gethostname())


def this_process() -> Process:
    """Return this process."""
    pid = os.getpid()
    return Process(pid, f"{_world()} {read_start_time(pid)}")


def lives(process: Process) -> bool:
    """Return whether a process of this machine lives, or may: it may be in another namespace."""
    boot, namespace, started = [*process.name.split(" "), "", ""][:3]
    here = _world().split(" ")
    if boot != here[0]:
        return False
    return namespace != here[1] or str(read_start_time(process.pid)) == started


def _world() -> str:
    """Return the boot and the pid namespace, within which pids are unique."""
    boot = (_PROC / "sys/kernel/random/boot_id").read_text("ascii").strip()
    return f"{boot} {(_PROC / 'self/ns/pid').readlink().name}"


def without_passwords(command: Iterable[str]) -> tuple[str, ...]:
    """Return the words of a command line with the passwords of URLs masked."""
    masked = (_PASSWORD.sub(r"\1:***@", word) for word in command)
    return tuple(_PASSWORD_OPTION.sub(r"\1***", word) for word in masked)
