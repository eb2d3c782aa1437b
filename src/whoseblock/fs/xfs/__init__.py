"""XFS, version 5, read from its blocks."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from whoseblock.fs.xfs.filesystem import XfsFilesystem

__all__ = ["XfsFilesystem"]


def __getattr__(name: str) -> object:
    # The daemon imports a module of this package, and its process stays small without the reader.
    if name == "XfsFilesystem":
        from whoseblock.fs.xfs.filesystem import XfsFilesystem

        return XfsFilesystem
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
