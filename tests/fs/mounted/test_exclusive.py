"""The lock of a mounted filesystem: over mounts, namespaces and users, and after a kill."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from tests.support.failing_filesystem import PLAIN, make_disk
from tests.support.mounts import mounted
from tests.support.tools import run

import whoseblock
from whoseblock.fs.driver import MountedVolume
from whoseblock.fs.mounted import exclusive
from whoseblock.fs.mounted.exclusive import RepairLock
from whoseblock.media.mounts import mount_kind

HOLD = """
import sys, time, whoseblock
from whoseblock.fs.mounted.exclusive import RepairLock
fs = whoseblock.open(sys.argv[1])
lock = RepairLock(fs)
print(lock.acquire(), flush=True)
time.sleep(60)
"""
SQUAT = """
import fcntl, os, sys, time
fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)
print(flush=True)
time.sleep(60)
"""


@pytest.fixture
def place(tmp_path: Path) -> Iterator[str]:
    with mounted(make_disk(tmp_path / "disk.img", PLAIN)) as folder:
        yield os.fsdecode(folder)


@pytest.fixture(params=["devtmpfs", "own /dev"])
def node(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Set whether all processes share the node of the device that this one has."""
    if request.param != "devtmpfs":
        monkeypatch.setattr(exclusive, "mount_kind", lambda _: "tmpfs")
    elif mount_kind(Path("/dev").stat().st_dev) != "devtmpfs":
        pytest.skip("/dev is no devtmpfs here")
    return bool(request.param == "devtmpfs")


@contextmanager
def opened(place: str) -> Iterator[RepairLock]:
    with whoseblock.open(place) as fs:
        assert isinstance(fs, MountedVolume)
        with closing(RepairLock(fs)) as lock:
            yield lock


@contextmanager
def running(code: str, place: str, *before: str) -> Iterator[subprocess.Popen[str]]:
    command = [*before, sys.executable, "-c", code, place]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "\n"
            yield process
        finally:
            process.kill()


@pytest.mark.usefixtures("node")
def test_one_at_a_time_over_every_mount(place: str, tmp_path: Path) -> None:
    folder, other = Path(place, "folder"), tmp_path / "other"
    folder.mkdir()
    other.mkdir()
    run(["mount", "--bind", str(folder), str(other)])
    try:
        with opened(place) as first, opened(str(other)) as second:
            assert first.acquire() == ""
            assert f"process {os.getpid()} " in second.acquire()
            first.close()
            assert second.acquire() == ""
    finally:
        run(["umount", str(other)])


@pytest.mark.usefixtures("node")
def test_a_kill_releases_the_lock(place: str) -> None:
    with opened(place) as lock, running(HOLD, place, "unshare", "--mount") as process:
        held = lock.acquire()
        assert held.startswith("process ")
        assert "user 0" in held
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert lock.acquire() == ""


def test_other_users_do_not_hinder_a_repair(place: str, node: bool) -> None:  # noqa: FBT001
    Path(place).chmod(0o755)
    with (
        opened(place) as lock,
        running(SQUAT, place, "setpriv", "--reuid=65534", "--clear-groups") as process,
    ):
        held = lock.acquire()
        # Without a lock that only root can have, nothing else would keep two repairs apart.
        assert held == ("" if node else f"process {process.pid} (python, user 65534)")


def test_filesystems_are_locked_apart(place: str, tmp_path: Path) -> None:
    with (
        mounted(make_disk(tmp_path / "other.img", PLAIN)) as other,
        opened(place) as first,
        opened(os.fsdecode(other)) as second,
    ):
        assert (first.acquire(), second.acquire()) == ("", "")
