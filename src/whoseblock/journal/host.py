"""Who writes to the journal: the machine, the user, the process, and whether it still lives."""

import os
import pwd
import re
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

from whoseblock.process_stat import started_at

__all__ = [
    "Host",
    "Process",
    "lives",
    "this_host",
    "this_process",
    "user_name",
    "without_passwords",
]

_PROC: Final = Path("/proc")
# From a scheme's :// and a user's name to the last @, since a password may hold anything.
_PASSWORD: Final = re.compile(r"(://[^:/@\s]*):.*@", re.DOTALL)
_PASSWORD_OPTION: Final = re.compile(r"(?i)\b(password=)[^&\s]*")


class Host(NamedTuple):
    """A machine; clones of it may share its ``machine_id``, and strangers its name."""

    name: str
    machine_id: str = ""


class Process(NamedTuple):
    """A process by its number, and by ``name``, which no other process ever has."""

    pid: int
    name: str


def this_host() -> Host:
    """Name the machine that this runs on."""
    for path in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        try:
            return Host(socket.gethostname(), Path(path).read_text("ascii").strip())
        except (OSError, UnicodeDecodeError):
            continue
    return Host(socket.gethostname())


def this_process() -> Process:
    """Name this process."""
    pid = os.getpid()
    return Process(pid, f"{_world()} {started_at(pid)}")


def lives(process: Process) -> bool:
    """Whether a process of this machine still runs, or may: one that cannot be seen from here."""
    boot, namespace, started = process.name.split(" ")
    here = _world().split(" ")
    if boot != here[0]:
        return False
    return namespace != here[1] or str(started_at(process.pid)) == started


def _world() -> str:
    """Name what gives numbers to our processes: the boot and the pid namespace."""
    boot = (_PROC / "sys/kernel/random/boot_id").read_text("ascii").strip()
    return f"{boot} {(_PROC / 'self/ns/pid').readlink().name}"


def user_name(uid: int) -> str:
    """Name a user, by number if nobody knows the name."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def without_passwords(command: Iterable[str]) -> tuple[str, ...]:
    """Give the words of a command line without the passwords of URLs."""
    masked = (_PASSWORD.sub(r"\1:***@", word) for word in command)
    return tuple(_PASSWORD_OPTION.sub(r"\1***", word) for word in masked)
