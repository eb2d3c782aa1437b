"""Make healthy images as a plan says, and ask the kernel for the truth about them."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from tests.support import calls
from tests.support.filler import Filler
from tests.support.images import sparse_file
from tests.support.mounts import loop_device, mounted
from tests.support.tools import Missing, run, xfsprogs
from tests.support.truth import Truth
from tests.support.zoo import by_kernel

from tools.adversary.bases import moved
from tools.adversary.plans import Plan

__all__ = ["can_mount", "make_deep", "make_many_inodes", "make_planned"]

_MIB = 1 << 20


def can_mount(folder: Path, *options: str) -> bool:
    """Whether this kernel mounts what mkfs.xfs makes with some options."""
    image = sparse_file(folder / "probe.img", 320 * _MIB)
    try:
        run([xfsprogs("mkfs.xfs"), "-q", "-f", *options, image])
        with mounted(image):
            return True
    except (Missing, RuntimeError):
        return False
    finally:
        image.unlink()


@contextlib.contextmanager
def _log_options(log: Path | None) -> Iterator[list[str]]:
    if log is None:
        yield []
        return
    with loop_device(log) as device:
        yield [f"logdev={device}"]


def make_planned(folder: Path, plan: Plan) -> tuple[Truth, Path | None]:
    """Make an image, fill it, and let happen what the plan says.

    Return the truth about it, and the file that holds its external log.
    """
    image = sparse_file(folder / f"healthy-{plan.number}.img", plan.size + plan.beyond)
    log = sparse_file(image.with_suffix(".log"), 64 * _MIB) if plan.external_log else None
    command = [xfsprogs("mkfs.xfs"), "-q", "-f", "--unsupported", *plan.options]
    command += ["-l", f"logdev={log},size={64 * _MIB}"] if log else []
    run([*command, image])
    with _log_options(log) as options:
        with mounted(image, *options) as root:
            filler = Filler(root, f"{plan}", block=plan.block, reflink=plan.reflink)
            fill(filler, plan)
            if plan.event == "grown":
                run([xfsprogs("xfs_growfs"), "-d", os.fsdecode(root)])
            elif plan.event == "shrunk":
                _shrink(root, plan)
            if plan.event in {"grown", "shrunk", "full"}:
                _steps(filler, plan.steps // 2)
            if plan.event == "full":
                _fill_up(filler)
        if plan.event == "uuid" and log is None:
            run([xfsprogs("xfs_admin"), "-U", "generate", image])
            if plan.number % 2:
                with mounted(image) as root:
                    moved(filler, root)
                    _steps(filler, plan.steps // 3)
        if plan.event == "log cleared" and log is None:
            run([xfsprogs("xfs_repair"), "-L", image])
        return by_kernel(image, *options), log


def fill(filler: Filler, plan: Plan) -> None:
    """Fill a filesystem, as far as there is room."""
    try:
        filler.fill(names=plan.names, steps=plan.steps)
        filler.fragmented_attributes()
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise


def _steps(filler: Filler, count: int) -> None:
    for _ in range(count):
        with contextlib.suppress(OSError):
            filler.random_step()


def _shrink(root: bytes, plan: Plan) -> None:
    """Shrink by a few blocks; the kernel does so only where the end is free."""
    blocks = plan.size // plan.block
    for fewer in (blocks // 20, 500, 64, 8):
        with contextlib.suppress(RuntimeError):
            run([xfsprogs("xfs_growfs"), "-D", str(blocks - fewer), os.fsdecode(root)])
            return


def _fill_up(filler: Filler) -> None:
    """Take every block that there is, then free a few single ones."""
    path = filler.root + b"/takes everything"
    file = os.open(path, os.O_CREAT | os.O_RDWR)
    try:
        length, end = 64 << 20, 0
        while length >= filler.block:
            try:
                calls.fallocate(file, end, length)
                end += length
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                length //= 2
        for at in range(0, min(end, 400 * filler.block), 16 * filler.block):
            calls.punch_hole(file, at, filler.block)
    finally:
        os.close(file)
    for number in range(300):
        try:
            os.close(os.open(filler.root + b"/small-%d" % number, os.O_CREAT | os.O_RDWR))
            os.setxattr(filler.root + b"/small-%d" % number, b"user.x", b"v" * 3000)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            return


def make_many_inodes(folder: Path, count: int) -> tuple[Truth, Path | None]:
    """Make an image of *count* inodes with blocks of 1 KiB: inode btrees of three levels."""
    image = sparse_file(folder / f"inodes-{count}.img", 3072 * _MIB)
    options = ["-b", "size=1024", "-d", "agcount=2", "-m", "rmapbt=1", "-i", "size=512"]
    run([xfsprogs("mkfs.xfs"), "-q", "-f", *options, image])
    with mounted(image) as root:
        for number in range(-(-count // 1000)):
            folder_name = root + b"/%d" % number
            os.mkdir(folder_name)
            for file in range(999):
                os.mknod(folder_name + b"/%d" % file)
    return by_kernel(image), None


def make_deep(folder: Path, extents: int) -> tuple[Truth, Path | None]:
    """Make an image with blocks of 1 KiB and trees of four levels.

    One file loses every other block; clones of every third of its blocks make as many
    records of shared blocks.
    """
    image = sparse_file(folder / f"deep-{extents}.img", 2048 * _MIB)
    options = ["-b", "size=1024", "-d", "agcount=1", "-m", "rmapbt=1,reflink=1", "--unsupported"]
    run([xfsprogs("mkfs.xfs"), "-q", "-f", *options, image])
    with mounted(image) as root:
        file = os.open(root + b"/one", os.O_CREAT | os.O_RDWR)
        other = os.open(root + b"/other", os.O_CREAT | os.O_RDWR)
        calls.fallocate(file, 0, 2 * extents * 1024)
        os.fsync(file)
        for at in range(extents):
            calls.punch_hole(file, 2 * at * 1024, 1024)
        for at in range(0, extents, 3):
            calls.clone_range(file, (2 * at + 1) * 1024, 1024, other, at * 2048)
        os.close(file)
        os.close(other)
        for number in range(200):
            os.mkdir(root + b"/folder-%d" % number)
    return by_kernel(image), None
