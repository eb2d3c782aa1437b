"""The protocols of media."""

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Media", "WritableMedia", "next_data"]


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


def next_data(media: Media, offset: int) -> int:
    """Return an offset up to which a medium has only zeros from ``offset`` on.

    It is ``offset`` itself for media that do not know their holes.
    """
    find: Callable[[int], int] | None = getattr(media, "next_data", None)
    return offset if find is None else find(offset)
