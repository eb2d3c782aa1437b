"""Mounting images, and never leaving a mount or a loop device behind."""

import contextlib
import ctypes
import fcntl
import functools
import os
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.support.tools import Missing, need_root, run

__all__ = [
    "frozen",
    "loop_device",
    "loop_device_elsewhere",
    "mounted",
    "own_mount_namespace",
    "shut_down",
    "small_filesystem",
]

_CLONE_NEWNS = 0x20000  # linux/sched.h
_FIFREEZE = 0xC0045877  # linux/fs.h
_FITHAW = 0xC0045878
_XFS_IOC_GOINGDOWN = 0x8004587D  # xfs_fs.h
_LOGFLUSH = 1


@functools.cache
def own_mount_namespace() -> None:
    """Put this process in a mount namespace of its own.

    Even if it is killed, its mounts end with it, and with them their loop devices.  Raises
    `Missing` where this process cannot have one.
    """
    need_root()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS) != 0:
        why = os.strerror(ctypes.get_errno())
        raise Missing(f"no mount namespace of its own ({why}): a container must be privileged")
    run(["mount", "--make-rprivate", "/"])


@contextlib.contextmanager
def mounted(image: Path, *options: str, kind: str = "xfs", loop: bool = True) -> Iterator[bytes]:
    """Mount an image through a loop device and give the folder; it is unmounted in any case.

    ``image`` is a device itself if not ``loop``.  ``Missing`` says that this kernel cannot mount
    what the image holds.
    """
    own_mount_namespace()
    with tempfile.TemporaryDirectory(prefix="whoseblock-mount-") as folder:
        # Copies of one image, with one UUID, are mounted side by side.
        given = ",".join((*["loop"] * loop, *["nouuid"] * (kind == "xfs"), *options))
        done = subprocess.run(
            ["mount", "-t", kind, "-o", given, image, folder], capture_output=True, check=False
        )
        if done.returncode:
            words = done.stderr.decode(errors="replace").strip()
            raise Missing(f"this kernel does not mount {image.name}: {words}")
        try:
            yield os.fsencode(folder)
        finally:
            _unmount(folder)


@contextlib.contextmanager
def small_filesystem(kind: str, image: Path, size: int) -> Iterator[Path]:
    """Mount an empty filesystem of ``size`` bytes: tmpfs, or ext4 in ``image``."""
    own_mount_namespace()
    with tempfile.TemporaryDirectory(prefix="whoseblock-mount-") as folder:
        if kind == "tmpfs":
            run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=0755", "tmpfs", folder])
        else:
            with image.open("wb") as file:
                file.truncate(size)
            run(["mkfs.ext4", "-q", "-m", "0", image])
            run(["mount", "-t", kind, "-o", "loop", image, folder])
        try:
            yield Path(folder)
        finally:
            _unmount(folder)


def _unmount(folder: str) -> None:
    for _ in range(50):
        done = subprocess.run(["umount", folder], capture_output=True, check=False)
        if done.returncode == 0:
            return
        time.sleep(0.1)
    # The mount must not outlive the test, even if it is held open; but the test fails.
    run(["umount", "--lazy", folder])
    raise RuntimeError(f"{folder} was still busy: {done.stderr.decode(errors='replace')}")


@contextlib.contextmanager
def frozen(folder: bytes) -> Iterator[None]:
    """Freeze a mounted filesystem: all its metadata is in place, and its log stays dirty."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.ioctl(descriptor, _FIFREEZE, 0)
        try:
            yield
        finally:
            fcntl.ioctl(descriptor, _FITHAW, 0)
    finally:
        os.close(descriptor)


def shut_down(folder: bytes) -> None:
    """Shut a mounted XFS down as a crash would, with all changes in its log and nowhere else."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.ioctl(descriptor, _XFS_IOC_GOINGDOWN, struct.pack("=I", _LOGFLUSH))
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def loop_device(file: Path, *options: str) -> Iterator[str]:
    """Attach a file to a loop device, for what is not the main device of a mount.

    Raises `Missing` where this process cannot do that.
    """
    need_root()
    try:
        device = run(["losetup", "--find", "--show", *options, file]).decode().strip()
    except RuntimeError as error:
        raise Missing(
            f"no loop device can be attached here ({error}): load the kernel module loop,"
            " and in a container allow its devices"
        ) from error
    try:
        yield device
    finally:
        run(["losetup", "--detach", device])


@contextlib.contextmanager
def loop_device_elsewhere(file: Path) -> Iterator[str]:
    """Attach a file to a loop device in another mount namespace, where it has another name."""
    own_mount_namespace()
    with tempfile.TemporaryDirectory(prefix="whoseblock-mount-") as folder:
        script = (
            'mount -t tmpfs tmpfs "$1" && touch "$1/image" && mount --bind "$0" "$1/image"'
            ' && losetup --find --show "$1/image" && read line'
        )
        with subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", script, file, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            device = process.stdout.readline().strip()
            try:
                if not device:
                    raise Missing("no loop device can be attached in another mount namespace")
                yield device
            finally:
                if device:
                    run(["losetup", "--detach", device])
                process.communicate("\n")
