"""The machine that a scenario runs in: programs, modules, mounts, what the kernel says."""

import re
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

from tests.support.tools import run, xfsprogs

__all__ = [
    "KernelLog",
    "Undo",
    "clear_trace",
    "make_xfs",
    "modprobe",
    "mount",
    "run",
    "traced",
    "wait_for",
    "xfsprogs",
]

T = TypeVar("T")

_TRACING = Path("/sys/kernel/tracing/instances/scenario")
#: The event has lived in both places.
_EVENTS = ("ras/memory_failure_event", "memory_failure/memory_failure_event")


class Undo(ExitStack):
    """The changes to undo at the end of a scenario, the last first."""

    def then(self, *command: str | Path) -> None:
        """Run a program at the end, if the scenario has not done so by itself."""
        self.callback(subprocess.run, command, capture_output=True, check=False)


class KernelLog:
    """The messages of the kernel since this object was made."""

    def __init__(self) -> None:
        self._before = self._count()

    @staticmethod
    def _count() -> int:
        return len(run(["dmesg"]).splitlines())

    @property
    def lines(self) -> list[str]:
        return run(["dmesg"]).decode(errors="replace").splitlines()[self._before :]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def verdicts(self, pfn: int) -> list[str]:
        """Return the kernel's verdict about a page of memory."""
        said = rf"Memory failure: {pfn:#x}: recovery action for (.*)$"
        return re.findall(said, self.text, re.MULTILINE)


def modprobe(*modules: str) -> None:
    """Load modules."""
    run(["modprobe", "-a", *modules])


def wait_for(what: Callable[[], T], seconds: float = 60) -> T:
    """Wait until something is so, and give it."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, f"{what} has not come true"
        time.sleep(0.05)
    return found


def make_xfs(device: str, *options: str) -> None:
    """Make a filesystem with reverse mapping, else as mkfs.xfs makes them but for what is said."""
    # On a small and striped device mkfs.xfs finds no size of the log that it likes.
    always = ("-m", "rmapbt=1", "-l", "size=64m", "-d", "agcount=2")
    run([xfsprogs("mkfs.xfs"), "-q", "-f", "-K", *always, *options, device])


def mount(undo: Undo, device: str, *options: str, name: str = "mounted") -> Path:
    """Mount a filesystem on a folder in memory."""
    folder = Path("/run") / name
    folder.mkdir(exist_ok=True)
    choice: Sequence[str] = ("-o", ",".join(options)) if options else ()
    run(["mount", *choice, device, folder])
    undo.then("umount", folder)
    return folder


def clear_trace() -> None:
    """Enable the tracepoint of memory failures in a separate instance, from now on."""
    _TRACING.mkdir(exist_ok=True)
    places = (_TRACING / "events" / name for name in _EVENTS)
    event = next(place for place in places if place.exists())
    (event / "enable").write_text("1")
    (_TRACING / "tracing_on").write_text("1")
    (_TRACING / "trace").write_text("")


def traced() -> list[tuple[int, str]]:
    """Return the page frame number and the verdict of every memory failure since."""
    text = (_TRACING / "trace").read_text()
    found = re.findall(r"memory_failure_event: pfn (0x[0-9a-f]+): recovery action for (.*)", text)
    return [(int(pfn, 16), verdict) for pfn, verdict in found]
