"""What was taken out of the kernel's trace buffer and is not in the spool yet: a small file.

Reading a trace buffer empties it.  So what was read is written down before it is looked at, for
whoever comes after a daemon that was killed.  It need not outlive the machine: nor does the buffer.
The kernel counts what was ever read, and the file what was kept: what is between is lost, and told.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from whoseblock.closing import Closing

__all__ = ["TraceCheckpoint", "TraceCounts"]

#: The mark is as long, filled up with spaces.
_HEAD: Final = 256
#: No daemon that reads a bounded part at a time leaves more.
_MOST: Final = 4 << 20


class TraceCounts(Struct, frozen=True):
    """How many events of the instance were kept, in a boot, and how many were told to be lost.

    ``by_lines`` is how many of those that found no room the lines have told of.
    """

    boot: str
    events: int
    overrun: int
    by_lines: int


class TraceCheckpoint(Closing):
    """The file ``path``; raises OSError.

    ``mark`` is that of the daemon before, None if there is none, and ``left`` what that had taken
    and not kept.
    """

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        content = os.pread(self._fd, _MOST, 0)
        self.mark: TraceCounts | None = None
        with suppress(msgspec.DecodeError):
            self.mark = msgspec.json.decode(content[:_HEAD], type=TraceCounts)
        self.left = content[_HEAD:]
        self._end = max(len(content), _HEAD)

    def take(self, data: bytes) -> None:
        """Write down what was read; without room there is only the kernel's count."""
        with suppress(OSError):
            self._end += os.pwrite(self._fd, data, self._end)

    def keep(self, mark: TraceCounts) -> None:
        """Forget what was written down, for it is kept."""
        with suppress(OSError):
            # In this order: killed in between, what is kept is found again, and not counted twice.
            os.pwrite(self._fd, msgspec.json.encode(mark).ljust(_HEAD), 0)
            os.ftruncate(self._fd, _HEAD)
            self._end = _HEAD

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)
