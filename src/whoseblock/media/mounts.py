"""Whether a device or an image is mounted, and a raw reading of it therefore stale."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

__all__ = ["mount_note"]

_SYS_BLOCK = Path("/sys/block")
_MOUNTINFO = Path("/proc/self/mountinfo")


def mount_note(name: str) -> str:
    """Give the note that reading the mounted device or image ``name`` calls for; "" if it is not.

    An image counts as mounted if a loop device that is made of it is.  Mounts in other mount
    namespaces are not seen.
    """
    try:
        status = Path(name).stat()
    except OSError:
        return ""
    if stat.S_ISBLK(status.st_mode):
        devices = {status.st_rdev}
    elif stat.S_ISREG(status.st_mode):
        devices = set(_loop_devices(status))
    else:
        return ""
    for device, where in _mounts() if devices else ():
        if device in devices:
            return (
                f"it is mounted at {where}: what is on the disk is older than what the kernel"
                " knows, and this answer may be too"
            )
    return ""


def _mounts() -> Iterator[tuple[int, str]]:
    """Give the device and the place of every mount (proc_pid_mountinfo(5), fields 3 and 5)."""
    try:
        lines = _MOUNTINFO.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return
    for line in lines:
        fields = line.split(" ")
        major, _, minor = fields[2].partition(":")
        yield os.makedev(int(major), int(minor)), fields[4]


def _loop_devices(image: os.stat_result) -> Iterator[int]:
    """Give the loop devices whose backing file is ``image``, and their partitions."""
    for loop in _SYS_BLOCK.glob("loop*"):
        try:
            backing = (loop / "loop/backing_file").read_text(errors="surrogateescape").rstrip("\n")
            status = Path(backing).stat()
        except OSError:
            # Not set up, or its file is deleted or in another mount namespace.
            continue
        if (status.st_dev, status.st_ino) == (image.st_dev, image.st_ino):
            for numbered in (loop / "dev", *loop.glob(f"{loop.name}p*/dev")):
                major, _, minor = numbered.read_text().strip().partition(":")
                yield os.makedev(int(major), int(minor))
