"""The protocols of media."""

from typing import Protocol, runtime_checkable

__all__ = ["Media", "WritableMedia"]


class Media(Protocol):
    """A byte-addressed medium, parts of which may be unreadable."""

    @property
    def name(self) -> str:
        """The name in messages."""

    @property
    def size(self) -> int:
        """The size in bytes."""

    def pread(self, offset: int, length: int) -> bytes:
        """Return exactly ``length`` bytes from ``offset``, or raise `MediaError`."""

    def close(self) -> None:
        """Close the medium."""


@runtime_checkable
class WritableMedia(Media, Protocol):
    """A medium that can be written."""

    def pwrite(self, offset: int, data: bytes) -> None:
        """Write all of ``data`` at ``offset``."""

    def sync(self) -> None:
        """Flush written data to stable storage."""
