"""Media: devices and images that may be failing.

All reading of a target goes through `Media.pread`, never through a mapping: touching a poisoned
page of a mapping kills the process, while `pread` merely fails.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from whoseblock.media.base import Media, WritableMedia
    from whoseblock.media.device import FileMedia
    from whoseblock.media.overlay import OverlayMedia
    from whoseblock.media.pmem import EmulatedPmem

__all__ = ["EmulatedPmem", "FileMedia", "Media", "OverlayMedia", "WritableMedia"]

_MODULES = {
    "EmulatedPmem": "pmem",
    "FileMedia": "device",
    "Media": "base",
    "OverlayMedia": "overlay",
    "WritableMedia": "base",
}


def __getattr__(name: str) -> object:
    """Import a class on first use: every lookup imports this package, but few need all classes."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
