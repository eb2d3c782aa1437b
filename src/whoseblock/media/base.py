"""What every medium can do."""

from typing import Protocol

__all__ = ["Media"]


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
