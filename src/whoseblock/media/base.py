"""What every medium can do."""

from typing import Protocol, runtime_checkable

__all__ = ["Media", "WritableMedia"]


class Media(Protocol):
    """Anything with bytes at offsets, some of which may have been lost."""

    @property
    def name(self) -> str:
        """What to call it in a message."""

    @property
    def size(self) -> int:
        """Its size in bytes."""

    def pread(self, offset: int, length: int) -> bytes:
        """Give exactly ``length`` bytes from ``offset``, or raise `MediaError`."""

    def close(self) -> None:
        """Let go of it."""


@runtime_checkable
class WritableMedia(Media, Protocol):
    """A medium that can be written."""

    def pwrite(self, offset: int, data: bytes) -> None:
        """Write all of ``data`` at ``offset``."""

    def sync(self) -> None:
        """Have what was written outlast a failure of the machine."""
