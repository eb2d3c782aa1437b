"""Mounts as the kernel lists them, and whether a raw reading of a device or image is stale.

The lists are those of proc_pid_mountinfo(5), one for each mount namespace.
"""

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from whoseblock.errors import TargetError
from whoseblock.media.loops import FileIdentity, backing_identity

__all__ = [
    "SHUT_DOWN",
    "Mount",
    "Reader",
    "block_devices_of",
    "device_node",
    "devices_of",
    "find_mounts",
    "is_folder",
    "mount_kind",
    "mount_note",
    "mount_point_device",
    "mounted_device",
    "mounted_readers",
    "namespaces",
    "read_mounts",
    "readers",
]

#: The errors of a filesystem that the kernel has shut down, even on opening its root.
SHUT_DOWN: Final = (errno.EIO, errno.EUCLEAN)

_SYS_BLOCK = Path("/sys/block")
_SYS_FS = Path("/sys/fs")
_DEV_BLOCK = Path("/sys/dev/block")
_PROC = Path("/proc")
#: Fields before the optional ones, which a lone dash ends, and fields after it.
_FIXED, _AFTER = 6, 3
#: Starts of partitions in sysfs count sectors of this many bytes.
_SECTOR: Final = 512
_ESCAPED: Final = re.compile(r"\\([0-7]{3})")


class Mount(NamedTuple):
    """One mount: the part ``root`` of a filesystem's tree, shown at ``point``.

    ``device`` is the filesystem's number as `os.makedev` gives it; ``options`` are those of the
    filesystem.  Names are as `os.fsdecode` gives them.
    """

    id: int
    parent: int
    device: int
    root: str
    point: str
    kind: str
    source: str
    options: tuple[str, ...]


def read_mounts(text: str) -> Iterator[Mount]:
    """Parse a list of mounts; lines in another form are skipped."""
    for line in text.split("\n"):
        fields = line.split(" ")
        if "-" not in fields[_FIXED:]:
            continue
        end = fields.index("-", _FIXED)
        if len(fields) <= end + _AFTER:
            continue
        major, _, minor = fields[2].partition(":")
        kind, source, options = fields[end + 1 : end + 1 + _AFTER]
        try:
            numbers = int(fields[0]), int(fields[1]), os.makedev(int(major), int(minor))
        except (ValueError, OverflowError):
            continue
        root, point = _unescaped(fields[3]), _unescaped(fields[4])
        yield Mount(*numbers, root, point, kind, _unescaped(source), tuple(options.split(",")))


def _unescaped(name: str) -> str:
    r"""Undo the kernel's ``\040`` for bytes that would end a field or a line."""
    return _ESCAPED.sub(lambda match: chr(int(match[1], 8)), name) if "\\" in name else name


def _mounts_of(process: str) -> list[Mount]:
    try:
        text = (_PROC / process / "mountinfo").read_bytes()
    except OSError:
        # It has ended, or we may not look.
        return []
    return list(read_mounts(os.fsdecode(text)))


def namespaces() -> Iterator[int]:
    """Yield one process of each mount namespace but our own, as far as they are visible."""
    seen = {_namespace("self"), None}
    # There may be thousands of processes, and every lookup waits for this: no `Path` for each.
    for name in os.listdir(_PROC):  # noqa: PTH208 - numbers, not paths
        if name.isdecimal() and (own := _namespace(name)) not in seen:
            seen.add(own)
            yield int(name)


def _namespace(process: str) -> str | None:
    try:
        return os.readlink(f"{_PROC}/{process}/ns/mnt")  # noqa: PTH115 - as above
    except OSError:
        return None


def find_mounts(device: int) -> tuple[int | None, list[Mount]]:
    """Return the mounts of a filesystem, by the number of one of its devices.

    Those of our own mount namespace if there are any, with None; otherwise those of another one,
    with a process that is in it.  The list is empty if there are none.
    """
    if mounts := [mount for mount in _mounts_of("self") if device in devices_of(mount)]:
        return None, mounts
    for process in namespaces():
        mounts = [mount for mount in _mounts_of(str(process)) if device in devices_of(mount)]
        if mounts:
            return process, mounts
    return None, []


def devices_of(mount: Mount) -> frozenset[int]:
    """Return the number under which a mount is listed, and those of its block devices.

    They differ where the filesystem has a number of its own, as filesystems of several devices
    do.  Its source is then one of its devices, and sysfs may list the others.
    """
    found = {mount.device}
    if os.major(mount.device) == 0 and mount.source.startswith("/dev/"):
        source = Path(mount.source)
        with contextlib.suppress(OSError, ValueError):
            status = source.stat()
            if stat.S_ISBLK(status.st_mode):
                found.add(status.st_rdev)
                found.update(_listed_with(mount.kind, status.st_rdev))
    return frozenset(found)


def block_devices_of(device: int) -> list[int]:
    """Return the numbers of the block devices of a mounted filesystem, by any of its numbers."""
    _, mounts = find_mounts(device)
    found = frozenset[int]().union(*map(devices_of, mounts))
    return sorted(number for number in found if os.major(number))


def _listed_with(kind: str, device: int) -> Iterator[int]:
    """Yield the devices that sysfs lists with one of a filesystem: /sys/fs/KIND/UUID/devices."""
    name = (_DEV_BLOCK / f"{os.major(device)}:{os.minor(device)}").resolve().name
    for folder in (_SYS_FS / kind).glob("*/devices"):
        if not (folder / name).exists():
            continue
        for one in folder.iterdir():
            with contextlib.suppress(OSError, ValueError):
                yield _number(one)


def device_node(number: int) -> str | None:
    """Return the path of the block device with a number, by the kernel's name; None without one."""
    attributes = _DEV_BLOCK / f"{os.major(number)}:{os.minor(number)}" / "uevent"
    try:
        lines = attributes.read_text().splitlines()
        name = next(line for line in lines if line.startswith("DEVNAME=")).partition("=")[2]
        status = Path("/dev", name).stat()
    except (OSError, StopIteration):
        return None
    return f"/dev/{name}" if status.st_rdev == number and stat.S_ISBLK(status.st_mode) else None


def mount_kind(device: int) -> str:
    """Return the kind of the filesystem with a number in our mount namespace, "" if there is none.

    The kind is as in mount(8).
    """
    return next((mount.kind for mount in _mounts_of("self") if mount.device == device), "")


def fuse_user(device: int) -> int:
    """Return the user whose server decides what a filesystem of a number has, 0 if no user's does.

    A server of FUSE also decides which owner, mode and times a file has.  ``user_id`` is the user
    that has mounted it (Documentation/filesystems/fuse.rst in the kernel's source).
    """
    if os.major(device):
        # Only root mounts from a block device.
        return 0
    for mount in _mounts_of("self"):
        if mount.device == device and mount.kind.partition(".")[0] == "fuse":
            users = (option.partition("=") for option in mount.options)
            return next((int(user) for name, _, user in users if name == "user_id"), 0)
    return 0


class Reader(NamedTuple):
    """A block device that reads a device or an image: itself, or by a loop device.

    ``device`` is its number, ``name`` the kernel's name for the loop device, "" if there is none.
    Byte 0 of it is byte ``offset`` of what it reads; ``whole`` if it reads all of that.
    """

    device: int
    name: str
    offset: int
    whole: bool


def readers(path: str | os.PathLike[str]) -> list[Reader]:
    """Return the devices that read a device or an image; its filesystem is mounted from those."""
    try:
        status = Path(path).stat()
    except (OSError, ValueError):
        return []
    if stat.S_ISBLK(status.st_mode):
        return [Reader(status.st_rdev, "", 0, whole=True)]
    return list(_loop_devices(status)) if stat.S_ISREG(status.st_mode) else []


def mounted_readers(path: str | os.PathLike[str]) -> list[Reader]:
    """Return those `readers` from which a filesystem is mounted, in any mount namespace."""
    return [reader for reader in readers(path) if find_mounts(reader.device)[1]]


def mount_note(name: str) -> str:
    """Return the note for reading the mounted device or image ``name``; "" if it is not mounted.

    An image counts as mounted if a loop device that is made of it is, or a partition of that.
    """
    for reader in mounted_readers(name):
        process, mounts = find_mounts(reader.device)
        where = mounts[0].point if mounts else "?"
        if process is not None:
            where += f" in the mount namespace of process {process}"
        return (
            f"it is mounted at {where}: what is on the disk is older than what the kernel"
            " knows, and this answer may be too"
        )
    return ""


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Return whether a path leads to a folder, or to the mount point of a failed filesystem."""
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)  # noqa: PTH116 - Path("") is a folder, "" none
    except (OSError, ValueError) as error:
        return _says_nothing(error) and mount_point_device(path) is not None


def mounted_device(path: str | os.PathLike[str]) -> int | None:
    """Return the number of the mounted device that a path stands for; None if it is none.

    The path is a mount point, a device, or an image that as a whole is mounted by a loop device.
    Raises `TargetError` for a folder that is no mount point.
    """
    if is_folder(path):
        device = mount_point_device(path)
        if device is None:
            raise TargetError(
                f"{os.fspath(path)!r} is a folder, and nothing is mounted there",
                hint="name the mount point of its filesystem, which findmnt --target shows",
            )
        return device
    return next((reader.device for reader in mounted_readers(path) if reader.whole), None)


def mount_point_device(folder: str | os.PathLike[str]) -> int | None:
    """Return the number of the device that is mounted at a folder; None if it is no mount point."""
    place = os.path.realpath(folder)
    # The last one mounted there is on top.
    devices = [mount.device for mount in _mounts_of("self") if mount.point == place]
    try:
        device = os.stat(folder).st_dev  # noqa: PTH116 - Path("") is a folder, "" none
    except (OSError, ValueError) as error:
        return devices[-1] if devices and _says_nothing(error) else None
    if device in devices:
        return device
    # A filesystem with subvolumes gives each a number that is not the one of its mounts.
    anonymous = devices and os.major(device) == 0 and os.major(devices[-1]) == 0
    return devices[-1] if anonymous else None


def _says_nothing(error: Exception) -> bool:
    """Return whether an error is the only answer of a filesystem that the kernel has shut down."""
    return isinstance(error, OSError) and error.errno in SHUT_DOWN


def _loop_devices(image: os.stat_result) -> Iterator[Reader]:
    """Yield the loop devices whose backing file is ``image``, and their partitions."""
    wanted = FileIdentity(image.st_dev, image.st_ino)
    for loop in _SYS_BLOCK.glob("loop*"):
        try:
            if not (loop / "loop").is_dir() or backing_identity(loop.name) != wanted:
                continue
            offset, limit = (
                int((loop / "loop" / of).read_text()) for of in ("offset", "sizelimit")
            )
            yield Reader(_number(loop), loop.name, offset, whole=not (offset or limit))
            for part in loop.glob(f"{loop.name}p*"):
                start = int((part / "start").read_text()) * _SECTOR
                yield Reader(_number(part), loop.name, offset + start, whole=False)
        except (OSError, ValueError):
            # It was detached meanwhile.
            continue


def _number(device: Path) -> int:
    major, _, minor = (device / "dev").read_text().strip().partition(":")
    return os.makedev(int(major), int(minor))
