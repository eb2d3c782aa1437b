"""Files of a mounted XFS, opened for a repair."""

import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support import system_calls
from tests.support.mounts import mounted
from tests.support.xfs_images import MIB, Geometry, make_image

from whoseblock.fs.xfs.mounted import kernel

CHANGES: dict[str, Callable[[int], object]] = {
    "read": lambda fd: os.pread(fd, 100, 0),
    "write": lambda fd: os.pwrite(fd, b"new", 5000),
    "punch": lambda fd: system_calls.punch_hole(fd, 4096, 4096),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("mounted")
    with mounted(make_image(folder / "disk", Geometry("times", size=32 * MIB))) as found:
        yield Path(os.fsdecode(found))


@pytest.mark.parametrize("name", CHANGES)
def test_changes_of_a_file_opened_invisibly_leave_its_times(root: Path, name: str) -> None:
    path = root / name
    path.write_bytes(bytes(3 * 4096))
    os.utime(path, ns=(10**18 + 1, 10**17 + 2))
    before = path.stat()
    mount = os.open(root, os.O_RDONLY)
    facts = kernel.inode_facts(mount, before.st_ino)
    assert facts is not None
    fsid = kernel.filesystem_id(mount)
    fd = kernel.open_invisibly(mount, fsid, before.st_ino, facts.generation, os.O_RDWR)
    assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    CHANGES[name](fd)
    os.fsync(fd)
    os.close(fd)
    after = path.stat()
    times = [(one.st_atime_ns, one.st_mtime_ns, one.st_ctime_ns) for one in (before, after)]
    assert times[0] == times[1]
    with pytest.raises(FileNotFoundError):
        kernel.open_invisibly(mount, fsid, before.st_ino, facts.generation + 1, os.O_RDWR)
    os.close(mount)
