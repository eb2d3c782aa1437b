"""Convert the kernel's monotonic clock to time of day, and name the boot that it counts from."""

import time
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["Clock", "boot_id", "booted_at"]

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class Clock(NamedTuple):
    """The offset from the kernel's monotonic clock to seconds since 1970."""

    offset: float

    @classmethod
    def now(cls) -> "Clock":
        """Compare the two clocks."""
        return cls(time.time() - time.monotonic())

    def at(self, seconds: float) -> float:
        """Return the time of day of a moment of the monotonic clock."""
        return self.offset + seconds


def boot_id() -> str:
    """Return the ID of this boot; raises OSError."""
    return _BOOT_ID.read_text("ascii").strip()


def booted_at() -> float:
    """Return when this boot began, in seconds since 1970, by the present time of day."""
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
