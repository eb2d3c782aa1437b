"""Exclusive use of images: every other use is noticed, and the claim ends with its process."""

import contextlib
import fcntl
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import pytest
from tests.support.mounts import loop_device, loop_device_elsewhere
from tests.support.tools import need_root

from whoseblock.errors import TargetError
from whoseblock.media.claims import claim
from whoseblock.media.mounts import readers

SIZE = 1 << 20
#: struct flock: a lock on one byte of the file.
READ_LOCK = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 100, 1, 0)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(SIZE))
    return path


@contextmanager
def removed_link(image: Path) -> Iterator[None]:
    link = image.parent / "link"
    link.hardlink_to(image)
    with loop_device(link, "--read-only"):
        link.unlink()
        yield


@contextmanager
def written_by_a_process(image: Path) -> Iterator[None]:
    with image.open("ab"):
        yield


@contextmanager
def locked_as_by_qemu(image: Path) -> Iterator[None]:
    with image.open("rb") as file:
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, READ_LOCK)
        yield


@contextmanager
def locked_whole(image: Path) -> Iterator[None]:
    with image.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


@contextmanager
def claimed(image: Path) -> Iterator[None]:
    descriptor = claim(image)
    try:
        yield
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(
    ("use", "why"),
    [
        (loop_device, "is in use by /dev/loop"),
        (removed_link, "is in use by /dev/loop"),
        (loop_device_elsewhere, "is in use by /dev/loop"),
        (written_by_a_process, "is open for writing elsewhere"),
        (locked_as_by_qemu, "has .* locked"),
        (locked_whole, "has .* locked"),
        (claimed, "is open for writing elsewhere"),
    ],
)
def test_an_image_in_use_is_not_claimed(
    image: Path, use: Callable[[Path], AbstractContextManager[object]], why: str
) -> None:
    with use(image), pytest.raises(TargetError, match=why):
        claim(image)
    os.close(claim(image))


def test_a_claim_keeps_locks_away(image: Path) -> None:
    with claimed(image), image.open("rb") as file:
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        with pytest.raises(BlockingIOError):
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, READ_LOCK)


def test_a_reader_is_no_obstacle(image: Path) -> None:
    with image.open("rb"), claimed(image):
        assert image.read_bytes() == bytes(SIZE)


def test_a_claim_ends_with_its_process(image: Path) -> None:
    code = "import sys, time; from whoseblock.media.claims import claim;"
    code += " claim(sys.argv[1]); print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code, image], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(TargetError):
            claim(image)
        process.send_signal(signal.SIGKILL)
    os.close(claim(image))


def test_a_device_in_use_is_not_claimed(image: Path) -> None:
    need_root()
    with ExitStack() as stack:
        loop = stack.enter_context(loop_device(image))
        with contextlib.closing(open(loop, "rb")):
            os.close(claim(loop))
        stack.callback(os.close, claim(loop))
        with pytest.raises(TargetError, match="exclusively: Device or resource busy"):
            claim(loop)


def test_a_loop_device_is_not_claimed_beside_another_one(image: Path) -> None:
    with loop_device(image) as first:
        with loop_device(image) as second, pytest.raises(TargetError, match=f"use by {first}"):
            claim(second)
        os.close(claim(first))


def test_a_claim_is_of_the_file_that_was_checked(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A user who may write to the folder changes a link between the check and the opening.
    link, other = tmp_path / "link", tmp_path / "other"
    other.write_bytes(bytes(SIZE))
    link.symlink_to(image)

    def swap(path: str) -> object:
        found = readers(path)
        link.unlink()
        link.symlink_to(other)
        return found

    monkeypatch.setattr("whoseblock.media.claims.readers", swap)
    descriptor = claim(link)
    try:
        assert os.path.samestat(os.fstat(descriptor), image.stat())
    finally:
        os.close(descriptor)
