"""A machine's /sys and /proc, below a root that need not be this machine's.

Layouts as in the kernel's Documentation/ABI: stable/sysfs-block and testing/sysfs-block.
"""

import os
import stat
from pathlib import Path
from typing import Final

__all__ = ["SECTOR", "Host"]

#: Sizes and starts in sysfs count sectors of this many bytes, whatever the device's own are.
SECTOR: Final = 512
#: Pages of every machine that a snapshot is likely to come from.
_SNAPSHOT_PAGE: Final = 4096
_MOST_DIGITS: Final = 20


class Host:
    """What the kernel says of a machine, ``root`` standing in for its ``/``."""

    def __init__(self, root: str | os.PathLike[str] = "/") -> None:
        self.root = Path(root)
        #: Whether devices can be opened, and not only be read about.
        self.live = self.root == Path("/")

    @property
    def page_size(self) -> int:
        """How many bytes a page frame number counts."""
        return os.sysconf("SC_PAGE_SIZE") if self.live else _SNAPSHOT_PAGE

    def text(self, path: Path) -> str | None:
        """Read an attribute, without the newline; None if it is not there or not readable."""
        try:
            return path.read_text(errors="surrogateescape").rstrip("\n")
        except (OSError, ValueError):
            return None

    def number(self, path: Path) -> int | None:
        """Read an attribute that is a number, decimal or ``0x…``; None if there is none."""
        text = (self.text(path) or "").strip()
        digits = text[2:] if text[:2] == "0x" else text
        if not digits.isascii() or not digits.isalnum() or len(digits) > _MOST_DIGITS:
            return None
        try:
            return int(text, 16 if text[:2] == "0x" else 10)
        except ValueError:
            return None

    def device_folder(self, name: str) -> Path | None:
        """Give the folder of a block device by the kernel's name for it; None if it has none."""
        folder = self.root / "sys/class/block" / name
        if "/" in name or name in ("", ".", "..") or not folder.is_dir():
            return None
        return folder.resolve()

    def device_at(self, path: str) -> str | None:
        """Give the kernel's name of the block device that ``path`` leads to; None if it is none."""
        try:
            status = Path(path).stat()
        except (OSError, ValueError):
            return None
        if not stat.S_ISBLK(status.st_mode):
            return None
        return self.device_numbered(status.st_rdev)

    def device_numbered(self, number: int) -> str | None:
        """Give the kernel's name of the block device with a number as `os.makedev` gives it."""
        folder = self.root / "sys/dev/block" / f"{os.major(number)}:{os.minor(number)}"
        return folder.resolve().name if folder.is_dir() else None
