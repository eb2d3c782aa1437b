"""Things that are closed when a ``with`` block ends."""

from types import TracebackType
from typing import Self

__all__ = ["Closing"]


class Closing:
    """A base that makes whatever has ``close`` a context manager."""

    def close(self) -> None:
        """Let go of what was opened."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
