"""Make healthy images as a plan says, and ask the kernel for the truth about them."""

import contextlib
import errno
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.support import system_calls
from tests.support.filled_images import by_kernel
from tests.support.mounts import loop_device, mounted
from tests.support.random_files import Filler, take_all_space
from tests.support.tools import Missing, run, xfsprogs
from tests.support.truth import Truth
from tests.support.xfs_images import sparse_file
from tests.support.xfsdb import ask
from tools.adversary.bases import moved
from tools.adversary.plans import Plan

__all__ = ["Made", "can_mount", "heights", "make_deep", "make_many_inodes", "make_planned"]

_MIB = 1 << 20


class Made(NamedTuple):
    """An image: the truth about it, and the file that holds its external log."""

    truth: Truth
    log: Path | None = None


def heights(truth: Truth) -> str:
    """Return the levels of the btrees of the first group, as xfs_db reads them."""
    names = "bnolevel rmaplevel refcntlevel".split()
    printed = ask(truth.image, ["agf 0", f"print {' '.join(names)}", "agi 0", "print level"])
    values = dict(re.findall(rb"^(\w+) = (\d+)$", printed, re.MULTILINE))
    return "/".join(value.decode() for value in values.values())


def can_mount(folder: Path, *options: str) -> bool:
    """Return whether this kernel mounts a filesystem that mkfs.xfs makes with some options."""
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


def make_planned(folder: Path, plan: Plan) -> Made:
    """Make an image, fill it, and let happen what the plan says."""
    image = sparse_file(folder / "healthy.img", plan.size + plan.beyond)
    log = sparse_file(image.with_suffix(".log"), 64 * _MIB) if plan.external_log else None
    command: list[str | Path] = [xfsprogs("mkfs.xfs"), "-q", "-f", "--unsupported", *plan.options]
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
                with contextlib.suppress(OSError):
                    _fill_up(filler)
        if plan.event == "uuid" and log is None:
            run([xfsprogs("xfs_admin"), "-U", "generate", image])
            if plan.number % 2:
                with mounted(image) as root:
                    moved(filler, root)
                    _steps(filler, plan.steps // 3)
        if plan.event == "log cleared" and log is None:
            run([xfsprogs("xfs_repair"), "-L", image])
        return Made(by_kernel(image, *options), log)


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
    """Allocate every free block, then free a few single ones."""
    path = filler.root + b"/takes everything"
    file = os.open(path, os.O_CREAT | os.O_RDWR)
    try:
        end = take_all_space(file, filler.block)
        for at in range(0, min(end, 400 * filler.block), 16 * filler.block):
            system_calls.punch_hole(file, at, filler.block)
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


def make_many_inodes(folder: Path, count: int) -> Made:
    """Make an image of *count* inodes with blocks of 1 KiB: inode btrees of three levels."""
    image = sparse_file(folder / "healthy.img", 3072 * _MIB)
    options = ["-b", "size=1024", "-d", "agcount=1", "-m", "rmapbt=1", "-i", "size=512"]
    options.append("--unsupported")  # the newest mkfs.xfs refuses a single group
    run([xfsprogs("mkfs.xfs"), "-q", "-f", *options, image])
    with mounted(image) as root:
        for number in range(-(-count // 1000)):
            folder_name = root + b"/%d" % number
            os.mkdir(folder_name)
            for file in range(999):
                os.mknod(folder_name + b"/%d" % file)
    return Made(by_kernel(image))


def make_deep(folder: Path, extents: int) -> Made:
    """Make an image with blocks of 1 KiB and trees of four levels.

    One file loses every other block; another shares two thirds of those that are left.
    """
    image = sparse_file(folder / "healthy.img", 4096 * _MIB)
    options = ["-b", "size=1024", "-d", "agcount=1", "-m", "rmapbt=1,reflink=1", "--unsupported"]
    run([xfsprogs("mkfs.xfs"), "-q", "-f", *options, image])
    with mounted(image) as root:
        file = os.open(root + b"/one", os.O_CREAT | os.O_RDWR)
        other = os.open(root + b"/other", os.O_CREAT | os.O_RDWR)
        # Written, because a clone leaves out what is only allocated.
        for at in range(0, 2 * extents * 1024, _MIB):
            os.pwrite(file, bytes(min(_MIB, 2 * extents * 1024 - at)), at)
        os.fsync(file)
        places = list(range(extents))
        # In any order: blocks of trees that grow at their end only are full, and the trees lower.
        random.Random(extents).shuffle(places)
        for at in places:
            system_calls.punch_hole(file, 2 * at * 1024, 1024)
        for at in places:
            if at % 3:
                system_calls.clone_range(file, (2 * at + 1) * 1024, 1024, other, at * 2048)
        os.close(file)
        os.close(other)
        for number in range(200):
            os.mkdir(root + b"/folder-%d" % number)
    return Made(by_kernel(image))
