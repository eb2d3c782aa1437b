"""Read a machine's /sys and /proc, below a root that may be a snapshot of another machine.

Layouts as in the kernel's Documentation/ABI: stable/sysfs-block and testing/sysfs-block.
"""

import os
import stat
from pathlib import Path
from typing import Final

__all__ = ["SECTOR", "Host"]

#: The unit of sizes and starts in sysfs, in bytes, whatever the sector size of the device.
SECTOR: Final = 512
#: The page size assumed for snapshots, in bytes.
_SNAPSHOT_PAGE: Final = 4096
_MAX_DIGITS: Final = 20


class Host:
    """The files of a machine's kernel; ``root`` replaces its ``/``."""

    def __init__(self, root: str | os.PathLike[str] = "/") -> None:
        self.root = Path(root)
        #: Whether this is the running machine, whose devices can be opened.
        self.live = self.root == Path("/")

    @property
    def page_size(self) -> int:
        """The size of a page frame in bytes."""
        return os.sysconf("SC_PAGE_SIZE") if self.live else _SNAPSHOT_PAGE

    def read_text(self, path: Path) -> str | None:
        """Read an attribute without its newline; return None if it is missing or unreadable."""
        try:
            return path.read_text(errors="surrogateescape").rstrip("\n")
        except (OSError, ValueError):
            return None

    def read_number(self, path: Path) -> int | None:
        """Read a decimal or ``0x…`` attribute; return None if it is missing or no number."""
        text = (self.read_text(path) or "").strip()
        digits = text[2:] if text[:2] == "0x" else text
        if not digits.isascii() or not digits.isalnum() or len(digits) > _MAX_DIGITS:
            return None
        try:
            return int(text, 16 if text[:2] == "0x" else 10)
        except ValueError:
            return None

    def block_devices(self) -> list[str]:
        """Return the kernel names of all block devices, in order."""
        return sorted(path.name for path in (self.root / "sys/class/block").glob("*"))

    def find_device_folder(self, name: str) -> Path | None:
        """Return the sysfs folder of a block device by its kernel name, None if there is none."""
        folder = self.root / "sys/class/block" / name
        if "/" in name or name in ("", ".", "..") or not folder.is_dir():
            return None
        return folder.resolve()

    def find_disk_number(self, device: str) -> tuple[str, int]:
        """Return the disk of a device or a partition, and its number (``diskseq``), 0 if unknown.

        The kernel never uses a number twice in a boot: another disk that gets the name, or another
        file of a loop device, has another one (Linux 5.15).
        """
        folder = self.find_device_folder(device)
        if folder is None:
            return device, 0
        if (folder / "partition").exists():
            folder = folder.parent
        return folder.name, self.read_number(folder / "diskseq") or 0

    def read_disk_number(self, device: str) -> int:
        """Return the number of the disk of a device or a partition, as `find_disk_number`."""
        if "/" in device or device in ("", ".", ".."):
            return 0
        # Many failures come at once: this is faster than to find the folder.
        folder = f"{self.root}/sys/class/block/{device}"
        for path in (f"{folder}/diskseq", f"{folder}/../diskseq"):
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                return int(os.read(descriptor, _MAX_DIGITS))
            except (OSError, ValueError):
                return 0
            finally:
                os.close(descriptor)
        return 0

    def find_device_at(self, path: str) -> str | None:
        """Return the kernel name of the block device at ``path``, None if it is none."""
        try:
            status = Path(path).stat()
        except (OSError, ValueError):
            return None
        if not stat.S_ISBLK(status.st_mode):
            return None
        return self.find_device_by_number(status.st_rdev)

    def find_device_called(self, name: str) -> str | None:
        """Return the kernel name of a device called ``mapper/…`` or ``MAJOR:MINOR`` in a report."""
        if "/" in name:
            is_safe = self.live and ".." not in name.split("/")
            return self.find_device_at(f"/dev/{name}") if is_safe else None
        major, colon, minor = name.partition(":")
        digits = major + minor
        if not colon or not digits.isascii() or not digits.isdecimal() or len(digits) > _MAX_DIGITS:
            return None
        folder = self.root / "sys/dev/block" / name
        return folder.resolve().name if folder.is_dir() else None

    def logical_block_size(self, name: str) -> int | None:
        """Return the size of the logical blocks of a device, or of its disk, in bytes."""
        folder = self.find_device_folder(name)
        if folder is None:
            return None
        disk = folder.parent if (folder / "partition").exists() else folder
        size = self.read_number(disk / "queue/logical_block_size")
        return size or None

    def find_device_by_number(self, number: int) -> str | None:
        """Return the kernel name of the block device with a number as of `os.makedev`."""
        folder = self.root / "sys/dev/block" / f"{os.major(number)}:{os.minor(number)}"
        return folder.resolve().name if folder.is_dir() else None

    def find_device_by_layer(self, layer: str) -> str:
        """Return the kernel name of the device whose layer is called ``layer``.

        The layer of a device-mapper volume is called as the volume (``vg-lv``, not ``dm-3``), every
        other layer as its device.
        """
        for folder in self.root.glob("sys/class/block/dm-*"):
            if self.read_text(folder / "dm/name") == layer:
                return folder.name
        return layer

    def find_layer_name(self, device: str) -> str:
        """Return the name of a device's layer, the inverse of `find_device_by_layer`."""
        return self.read_text(self.root / "sys/class/block" / device / "dm/name") or device
