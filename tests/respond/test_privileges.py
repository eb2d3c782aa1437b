"""Privileges that the kernel takes from a changed file come back, but never to other content."""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.failing_filesystem import BLOCK, bench, pattern, write_file
from tests.support.file_attributes import CAPABILITY
from tests.support.mounts import mounted
from tests.support.tools import CHECKOUT
from tests.support.xfs_images import MIB, Geometry, make_image

from whoseblock.fs.base import FileId
from whoseblock.fs.driver import MountedVolume
from whoseblock.lookup import Lookup
from whoseblock.respond import privileges
from whoseblock.respond.exceptions import NotNowError
from whoseblock.respond.owners import FilePosition, OpenOwner
from whoseblock.respond.privileges import FilePrivileges, PrivilegeJournal, has_privileges
from whoseblock.respond.syscalls import write_lease
from whoseblock.target import Target, TargetOptions

_NAME = "security.capability"
_OLD, _NEW = b"old data" * 512, b"new data" * 512


@pytest.fixture(name="fs", scope="module")
def _fs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedVolume]:
    image = make_image(tmp_path_factory.mktemp("privileges") / "disk", Geometry("p", size=32 * MIB))
    with (
        mounted(image) as root,
        Target(os.fsdecode(root), TargetOptions()) as target,
        Lookup(target.open_leaf) as finder,
    ):
        assert target.layer is not None
        found = finder.leaf(target.layer)
        assert isinstance(found, MountedVolume)
        yield found


class Journal:
    """The lists of records as they were noted."""

    def __init__(self) -> None:
        self.noted: list[list[FilePrivileges]] = []

    def note(self, records: list[FilePrivileges]) -> None:
        self.noted.append(records)


@pytest.fixture(name="path")
def _path(fs: MountedVolume, request: pytest.FixtureRequest) -> Path:
    path = Path(fs.mount_point, str(request.node.name))
    path.write_bytes(_OLD * 3)
    os.setxattr(path, _NAME, CAPABILITY)
    return path


def interrupted(fs: MountedVolume, path: Path) -> FilePrivileges:
    """Write to a file as a repair does that is killed before the privileges are back."""
    journal, file = Journal(), FileId(0, path.stat().st_ino)
    generation = fs.files((file,))[file].generation
    fd = fs.open_file(file, generation, os.O_RDWR)
    assert has_privileges(fd)
    owner = OpenOwner(FilePosition(file, generation, 4096), fd, 3 * 4096)
    ledger = PrivilegeJournal((), journal.note)
    with write_lease(fd), ledger.keeping(owner, _NEW):
        os.pwrite(fd, _NEW, 4096)
        assert not has_privileges(fd)
    assert (has_privileges(fd), ledger.outstanding) == (True, [])
    # The same again, without what comes after.
    os.removexattr(path, _NAME)
    os.close(fd)
    ((record,), nothing) = journal.noted
    assert (record.file, nothing) == (file, [])
    return record


def test_they_come_back_after_an_interruption(fs: MountedVolume, path: Path) -> None:
    record = interrupted(fs, path)
    journal = Journal()
    PrivilegeJournal([record], journal.note).put_back(fs)
    assert os.getxattr(path, _NAME) == CAPABILITY
    assert journal.noted == [[]]


def test_a_large_file_is_read_before_it_is_leased(
    fs: MountedVolume, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(privileges, "_LARGE", 4096)
    monkeypatch.setattr(privileges, "_SETTLED_NS", 0)
    file = FileId(0, path.stat().st_ino)
    generation = fs.files((file,))[file].generation
    fd = fs.open_file(file, generation, os.O_RDWR)
    owner = OpenOwner(FilePosition(file, generation, 4096), fd, 3 * 4096)
    reads: list[int] = []
    usual = privileges._digest

    def counted(fd: int, offset: int = 0, data: bytes = b"") -> str:
        reads.append(offset)
        return usual(fd, offset, data)

    monkeypatch.setattr(privileges, "_digest", counted)
    journal = Journal()
    ledger = PrivilegeJournal((), journal.note)
    for change, count in (False, 1), (True, 2):
        reads.clear()
        ledger.prepare(owner, _NEW)
        if change:
            os.pwrite(fd, b"newer", 0)
            os.setxattr(path, _NAME, CAPABILITY)
        with write_lease(fd), ledger.keeping(owner, _NEW):
            os.pwrite(fd, _NEW, 4096)
        assert len(reads) == count
        record = journal.noted[-2][0]
        assert record.belong_to(fd)
    os.close(fd)


def test_not_to_other_content(fs: MountedVolume, path: Path) -> None:
    record = interrupted(fs, path)
    # As the user who owns a program might do, times included.
    status = path.stat()
    path.write_bytes(b"evil" + (_OLD + _NEW + _OLD)[4:])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    ledger = PrivilegeJournal([record], Journal().note)
    ledger.put_back(fs)
    assert _NAME not in os.listxattr(path)
    assert ledger.outstanding == [record]
    assert f"inode {record.inode} were not put back" in ledger.forget_rest()
    assert ledger.outstanding == []


def test_not_to_another_user(fs: MountedVolume, path: Path) -> None:
    record = interrupted(fs, path)
    os.chown(path, 1000, 1000)
    PrivilegeJournal([record], Journal().note).put_back(fs)
    assert _NAME not in os.listxattr(path)


def test_not_while_another_process_writes(fs: MountedVolume, path: Path) -> None:
    record = interrupted(fs, path)
    with path.open("r+b"), pytest.raises(NotNowError, match="open for writing"):
        PrivilegeJournal([record], Journal().note).put_back(fs)
    assert _NAME not in os.listxattr(path)


def test_a_deleted_file_is_forgotten(fs: MountedVolume, path: Path) -> None:
    record = interrupted(fs, path)
    path.unlink()
    ledger = PrivilegeJournal([record], Journal().note)
    ledger.put_back(fs)
    assert ledger.outstanding == []


def test_setuid_survives_a_repair_without_the_capability_for_it(tmp_path: Path) -> None:
    with bench(tmp_path) as served:
        content = pattern("program", 3 * BLOCK)
        path = write_file(served.root / "program", content)
        subprocess.run(["cp", "--reflink=always", path, served.root / "clone"], check=True)
        path.chmod(0o6755)
        copy = write_file(tmp_path / "good", content)
        os.utime(copy, ns=(0, path.stat().st_mtime_ns))
        os.utime(served.root / "clone", ns=(0, path.stat().st_mtime_ns))
        place = served.place(path, 1)
        served.fail(place)
        without = ["setpriv", "--bounding-set=-fsetid", "--inh-caps=-fsetid"]
        command = [sys.executable, "-m", "whoseblock", "respond", served.root, str(place)]
        words = ["--restore-file", copy, "--apply", "--yes", "--journal", served.journal]
        done = subprocess.run(
            [*without, *map(str, [*command, *words])],
            cwd=CHECKOUT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert stat.S_IMODE(path.stat().st_mode) == 0o6755
        assert path.read_bytes() == content
        # It was recorded before, and is no longer outstanding.
        noted = [event.detail.get("privileges") for event in served.steps()[0].events]
        ((record,), nothing) = (records for records in noted if records is not None)
        assert (record["mode"], record["capability"], nothing) == (0o106755, "", [])
