"""A base class for objects that a ``with`` block closes."""

from types import TracebackType
from typing import Self

__all__ = ["Closing"]


class Closing:
    """Makes a class with ``close`` a context manager."""

    def close(self) -> None:
        """Close what was opened."""
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
