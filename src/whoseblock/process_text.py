"""Parse the texts of /proc about processes: proc_pid_stat(5), proc_pid_status(5), cgroups(7)."""

import os
from typing import Final, NamedTuple

from msgspec import UNSET, UnsetType

__all__ = [
    "ProcessStat",
    "decode",
    "flag_names",
    "parse_cgroup",
    "parse_stat",
    "parse_status",
    "unit_of",
]

_PF_KTHREAD: Final = 0x00200000  # linux/sched.h

_ACCESS: Final = {os.O_RDONLY: "O_RDONLY", os.O_WRONLY: "O_WRONLY", os.O_RDWR: "O_RDWR"}
#: Flags that include others precede them.
_FLAGS: Final[dict[int, str]] = {
    getattr(os, name): name
    for name in (
        "O_APPEND O_ASYNC O_DIRECT O_SYNC O_DSYNC O_TMPFILE O_DIRECTORY O_NOATIME O_NOFOLLOW"
        " O_NONBLOCK O_PATH"
    ).split()
}

_UNITS: Final = (".service", ".scope", ".socket", ".mount", ".swap")


class ProcessStat(NamedTuple):
    """The state of a process by proc_pid_stat(5)."""

    command: bytes
    zombie: bool
    kernel: bool
    threads: int
    start_time: int
    has_memory: bool

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        # A leader that is gone stays as a zombie until all its threads are gone.
        return self.zombie and self.threads <= 1

    def is_same_program(self, other: "ProcessStat") -> bool:
        """Return whether another moment is of the same program of the same process."""
        return (self.start_time, self.command) == (other.start_time, other.command)


def parse_stat(text: bytes) -> ProcessStat:
    """Parse proc_pid_stat(5)."""
    # The name is in parentheses, and may hold more of them, and spaces.
    head, _, tail = text.rpartition(b")")
    fields = tail.split()
    return ProcessStat(
        command=head.partition(b"(")[2],
        zombie=fields[0] in (b"Z", b"X"),
        kernel=bool(int(fields[6]) & _PF_KTHREAD),
        threads=int(fields[17]),
        start_time=int(fields[19]),
        has_memory=fields[20] != b"0",
    )


def parse_status(text: bytes) -> tuple[int, int | UnsetType]:
    """Return the effective user, and the number in the innermost pid namespace.

    The number is unset if there is only one namespace.
    """
    users = text.partition(b"\nUid:\t")[2].split(maxsplit=2)
    numbers = text.partition(b"\nNSpid:\t")[2].partition(b"\n")[0].split()
    return int(users[1]), int(numbers[-1]) if len(numbers) > 1 else UNSET


def parse_cgroup(text: bytes) -> str | UnsetType:
    """Return the path of the control group of systemd."""
    # systemd is in the unified hierarchy, or in one of its own on machines that mount the old ones.
    paths: dict[bytes, bytes] = {}
    for line in text.split(b"\n"):
        number, _, rest = line.partition(b":")
        controllers, _, path = rest.partition(b":")
        paths[controllers or number] = path
    unified, own = paths.get(b"0", b""), paths.get(b"name=systemd", b"")
    path = own if unified in (b"", b"/") and own else unified
    return decode(path) if path else UNSET


def unit_of(cgroup: str) -> str | UnsetType:
    """Return the unit of systemd that the path of a control group names."""
    names = cgroup.removesuffix(" (deleted)").split("/")
    for endings in (_UNITS, ".slice"):
        for name in reversed(names):
            if name.endswith(endings) and not name.startswith("."):
                # systemd's escape for what would collide with a file of the kernel's.
                return name.removeprefix("_")
    return UNSET


def flag_names(flags: int) -> tuple[str, ...]:
    """Return the names of the flags of open(2), the access mode first."""
    names = [] if flags & os.O_PATH else [_ACCESS.get(flags & os.O_ACCMODE, "O_ACCMODE")]
    for flag, name in _FLAGS.items():
        if flags & flag == flag:
            names.append(name)
            flags &= ~flag
    return tuple(names)


def decode(name: bytes) -> str:
    """Decode a name; bytes that are not UTF-8 become lone surrogates."""
    return name.decode(errors="surrogateescape")
