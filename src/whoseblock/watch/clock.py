"""The kernel's monotonic clock as time of day, and which boot it counts from."""

import time
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["Clock", "boot_id"]

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class Clock(NamedTuple):
    """What to add to the kernel's monotonic seconds for those since 1970."""

    offset: float

    @classmethod
    def now(cls) -> "Clock":
        """Compare the two clocks."""
        return cls(time.time() - time.monotonic())

    def at(self, seconds: float) -> float:
        """Give the time of day of a moment of the monotonic clock."""
        return self.offset + seconds


def boot_id() -> str:
    """Name this run of the kernel; raises OSError."""
    return _BOOT_ID.read_text("ascii").strip()
