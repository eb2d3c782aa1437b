"""Keep what was read from the kernel's trace buffer and is not in the spool yet.

Reading a trace buffer empties it. So what was read is written to a file before it is parsed, for
the next daemon if this one is killed. The file need not survive the machine: the buffer does not
either. The kernel counts events read, the file events spooled; the difference is reported as lost.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from whoseblock.closing import Closing

__all__ = ["TraceCheckpoint", "TraceCounts"]

#: The counts are padded with spaces to this length.
_HEAD: Final = 256
#: More than any daemon leaves that reads a bounded part at a time.
_MOST: Final = 4 << 20


class TraceCounts(Struct, frozen=True):
    """Counts of the events of an instance in a boot: spooled, and reported as lost.

    ``by_lines`` is how many dropped events the lines of the trace have counted. ``since`` is when
    the instance began to record, in seconds since 1970, 0 if that is unknown.
    """

    boot: str
    events: int
    overrun: int
    by_lines: int
    since: float = 0.0


class TraceCheckpoint(Closing):
    """The file ``path``; raises OSError.

    ``mark`` is that of the previous daemon, None if there is none, and ``left`` what it had read
    but not spooled.
    """

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        content = os.pread(self._fd, _MOST, 0)
        self.mark: TraceCounts | None = None
        with suppress(msgspec.DecodeError):
            self.mark = msgspec.json.decode(content[:_HEAD], type=TraceCounts)
        self.left = content[_HEAD:]
        self._end = max(len(content), _HEAD)

    def append(self, data: bytes) -> None:
        """Store what was read; without room, only the kernel's count is left."""
        with suppress(OSError):
            self._end += os.pwrite(self._fd, data, self._end)

    def commit(self, mark: TraceCounts) -> None:
        """Save the counts and discard the stored events, which are in the spool."""
        with suppress(OSError):
            # In this order: after a kill in between, spooled events are found again but not counted
            # twice.
            os.pwrite(self._fd, msgspec.json.encode(mark).ljust(_HEAD), 0)
            os.ftruncate(self._fd, _HEAD)
            self._end = _HEAD

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)
