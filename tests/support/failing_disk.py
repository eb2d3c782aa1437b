"""A disk whose sectors really fail, before the eyes of this machine's kernel and of a daemon.

An image that `whoseblock emulate` serves is under a loop device: reading a bad sector gives EIO,
and the kernel logs and traces the request as it does of a disk that dies.
"""

import contextlib
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

from tests.support.emulated_device import Emulated, emulated
from tests.support.mounts import mounted, own_mount_namespace
from tests.support.tools import Missing, run

__all__ = ["TRACING", "failing_disk", "read_direct", "traced"]

TRACING = Path("/sys/kernel/tracing")


@contextlib.contextmanager
def traced() -> Iterator[None]:
    """Mount tracefs at its usual place, in a separate mount namespace."""
    own_mount_namespace()
    if (TRACING / "instances").is_dir():
        yield
        return
    try:
        run(["mount", "-t", "tracefs", "tracefs", TRACING])
    except RuntimeError as error:
        raise Missing(f"tracefs cannot be mounted here: {error}") from error
    try:
        yield
    finally:
        run(["umount", "--lazy", TRACING])


@contextlib.contextmanager
def failing_disk(
    image: Path, folder: Path, *, in_place: bool = True
) -> Iterator[tuple[Emulated, Path, Path]]:
    """Provide the server of an image, the loop device on it, and its mount point."""
    with (
        emulated(image, folder, in_place=in_place) as served,
        served.loop() as loop,
        mounted(loop, loop=False) as root,
    ):
        yield served, loop, Path(os.fsdecode(root))


def read_direct(device: Path, at: int, buffer: mmap.mmap | None = None) -> bool:
    """Read a sector past the page cache; whether that was possible."""
    file = os.open(device, os.O_RDONLY | os.O_DIRECT)
    try:
        os.preadv(file, [buffer or mmap.mmap(-1, 512)], at)
    except OSError:
        return False
    finally:
        os.close(file)
    return True
