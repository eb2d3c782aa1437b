"""Reading devices and images that may be failing.

All reading of a target goes through `Media.pread`: never through a mapping, because touching a
poisoned page of a mapping kills the process, while `pread` merely says EIO.
"""

from whoseblock.media.base import Media, WritableMedia
from whoseblock.media.device import FileMedia
from whoseblock.media.overlay import OverlayMedia
from whoseblock.media.pmem import EmulatedPmem

__all__ = ["EmulatedPmem", "FileMedia", "Media", "OverlayMedia", "WritableMedia"]
