"""Processes that use a file in one way or another, until they are stopped."""

import mmap
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from tests.vm.guest.asking import Json, rows
from tests.vm.guest.files import Shared
from tests.vm.guest.machine import Undo
from tests.vm.guest.pmem import PAGE

__all__ = ["Users", "holds_open", "maps"]


class Users(NamedTuple):
    """Processes around a page that two files share: each has another file, or uses it otherwise.

    ``mapper`` has the page of the first file mapped, ``sharer`` that of the second, and ``opener``
    merely has the first open.  ``others`` have another page mapped, or another file.
    """

    mapper: int
    sharer: int
    opener: int
    others: tuple[int, int]

    @classmethod
    def start(cls, undo: Undo, folder: Path, shared: Shared, at: int) -> "Users":
        """Start them."""
        bystander = folder / "other"
        bystander.write_bytes(b"B" * (1 << 20))
        return cls(
            maps(undo, shared.first, at),
            maps(undo, shared.second, at),
            holds_open(undo, shared.first),
            (maps(undo, shared.first, at + 95 * PAGE), maps(undo, bystander, at)),
        )

    def check(self, answer: Json, shared: Shared) -> None:
        """See that an answer tells them apart."""
        first, second = (path.stat().st_ino for path in shared[:2])
        users = {row["inode"]: row["processes"] for row in rows(answer)}
        assert {one["pid"] for one in users[first] if one["mappings"]} == {self.mapper}
        assert {one["pid"] for one in users[first] if one["open"]} == {self.opener}
        assert {one["pid"] for one in users[second]} == {self.sharer}
        assert not {*self.others} & {one["pid"] for one in (*users[first], *users[second])}


def maps(undo: Undo, path: Path, offset: int, *, touched: bool = True, mapped: int = PAGE) -> int:
    """Start a process that has a page of a file mapped, and the file not open; give its number.

    It has ``mapped`` bytes around the page mapped, a multiple of which they begin at.
    """
    return _start(undo, path, offset, touched=touched, mapped=mapped)


def holds_open(undo: Undo, path: Path) -> int:
    """Start a process that merely has a file open; give its number."""
    return _start(undo, path, None, touched=False)


def _start(undo: Undo, path: Path, offset: int | None, *, touched: bool, mapped: int = PAGE) -> int:
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(ready)
            descriptor = os.open(path, os.O_RDWR)
            if offset is not None:
                mapping = mmap.mmap(descriptor, mapped, offset=offset - offset % mapped)
                # Python keeps a descriptor of its own for the size of the mapping.
                os.closerange(descriptor, tell)
                os.closerange(tell + 1, 64)
                if touched:
                    mapping[offset % mapped]
            os.write(tell, b"!")
            while True:
                signal.pause()
        finally:
            os._exit(1)
    os.close(tell)
    undo.callback(_stop, child)
    told = os.read(ready, 1)
    os.close(ready)
    assert told == b"!", f"the process that was to use {path} ended"
    return child


def _stop(child: int) -> None:
    # Something may have ended it before.
    with suppress(ProcessLookupError, ChildProcessError):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
