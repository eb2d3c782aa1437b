"""A journal that another user could have written or replaced is refused, and not acted on."""

import os
import stat
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from demo.demo import unpack
from tests.support.journals import opened
from tests.support.tools import CHECKOUT, Missing, need_root

from whoseblock.errors import JournalError
from whoseblock.journal import open_journal
from whoseblock.lookup import Lookup, Query
from whoseblock.media.trusted_files import find_trusted, user_name
from whoseblock.respond import service
from whoseblock.respond.service import PlanOptions
from whoseblock.target import Target, TargetOptions

_OTHER = 65534


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    """Provide a folder with a journal in it."""
    folder = tmp_path / "above" / "folder"
    with opened(str(folder / "journal.sqlite")):
        pass
    return folder


def refused(folder: Path) -> JournalError:
    """Open the journal for reading and for writing; return the error, the same for both."""
    errors = []
    for write in (True, False):
        with pytest.raises(JournalError, match="is not safe to use") as caught:
            open_journal(str(folder / "journal.sqlite"), write=write)
        assert caught.value.exit_code == 13
        errors.append(caught.value)
    assert str(errors[0]) == str(errors[1])
    assert errors[0].hint
    return errors[0]


def test_a_journal_of_ours_is_private(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with opened(str(tmp_path / "a" / "b" / "journal.sqlite")):
            pass
    finally:
        os.umask(before)
    modes = [
        stat.S_IMODE(path.stat().st_mode)
        for path in (tmp_path / "a", tmp_path / "a/b", tmp_path / "a/b/journal.sqlite")
    ]
    assert modes == [0o700, 0o700, 0o600]


def test_links_of_ours_are_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("above/../above/folder")
    (tmp_path / "file").symlink_to(folder / "journal.sqlite")
    for name in ("link/journal.sqlite", "file"):
        with open_journal(str(tmp_path / name), write=False) as journal:
            assert list(journal.failures()) == []
    found = find_trusted("it", tmp_path / "link/journal.sqlite", make=False)
    assert found.path == folder / "journal.sqlite"
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(JournalError, match="symbolic links"):
        open_journal(str(tmp_path / "loop"))


@pytest.mark.parametrize(
    ("mode", "words"),
    [(0o775, "chmod go-w"), (0o757, "chmod go-w"), (0o1777, "in a folder of your own")],
)
def test_a_folder_that_others_may_write_to(folder: Path, mode: int, words: str) -> None:
    # In a sticky folder another user may put the write-ahead log of a journal that has none.
    folder.chmod(mode)
    error = refused(folder)
    assert repr(str(folder)) in str(error)
    assert f"mode {mode:04o}" in str(error)
    assert words in error.hint
    assert ("chmod" in error.hint) == (mode != 0o1777)


def test_a_folder_above_that_others_may_write_to(folder: Path) -> None:
    # They could rename the journal's folder, and put another in its place while it is opened.
    folder.parent.chmod(0o777)
    refused(folder)
    folder.parent.chmod(0o1777)
    with open_journal(str(folder / "journal.sqlite")):
        pass


@pytest.mark.parametrize("name", ["journal.sqlite", "journal.sqlite-wal", "journal.sqlite-journal"])
def test_a_file_that_others_may_write_to(folder: Path, name: str) -> None:
    (folder / name).touch()
    (folder / name).chmod(0o620)
    assert name in str(refused(folder))


def test_a_file_that_is_not_regular(folder: Path) -> None:
    os.mkfifo(folder / "journal.sqlite-wal")
    assert "is not a regular file" in str(refused(folder))


@pytest.mark.parametrize(
    "name", ["..", ".", "journal.sqlite", "journal.sqlite-wal", "journal.sqlite-shm"]
)
def test_what_belongs_to_another_user(folder: Path, name: str) -> None:
    need_root()
    (folder / name).touch()
    os.chown(folder / name, _OTHER, -1)
    error = refused(folder)
    assert f"belongs to user {user_name(_OTHER)}" in str(error)
    assert f"sudo -u {user_name(_OTHER)} whoseblock" in error.hint


@pytest.mark.parametrize("end", ["", "/journal.sqlite"])
def test_a_link_of_another_user_in_a_sticky_folder(folder: Path, tmp_path: Path, end: str) -> None:
    need_root()
    shared = tmp_path / "shared"
    shared.mkdir()
    link = shared / "link"
    link.symlink_to(str(folder) + end)
    shared.chmod(0o1777)
    file = str(link) if end else str(link / "journal.sqlite")
    with open_journal(file, write=False):
        pass
    os.chown(link, _OTHER, -1, follow_symlinks=False)
    with pytest.raises(JournalError, match=r"/link' belongs to user"):
        open_journal(file, write=False)


def test_a_folder_with_an_access_control_list(folder: Path) -> None:
    # The group bits of the mode hold what the list grants: acl(5).
    # linux/posix_acl_xattr.h: a version, and for each entry a tag, permissions and an id.
    entries = [(0x01, 7, -1), (0x02, 7, _OTHER), (0x04, 5, -1), (0x10, 7, -1), (0x20, 5, -1)]
    value = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    try:
        os.setxattr(folder, "system.posix_acl_access", value)
    except OSError as error:
        raise Missing("the filesystem of the tests has no access control lists") from error
    assert "mode 0775" in str(refused(folder))


def _take_over(folder: Path) -> None:
    os.chown(folder / "journal.sqlite", _OTHER, -1)


def _share(folder: Path) -> None:
    folder.chmod(0o777)


@pytest.mark.parametrize("change", [_take_over, _share])
def test_the_command_of_another_user_is_not_run(
    folder: Path, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    # Without the check, root runs whatever is planned in a journal that others may write.
    need_root()
    image, marker = tmp_path / "disk.img", tmp_path / "marker"
    unpack(image)
    where, options = TargetOptions(), PlanOptions(command=f"touch {marker}")
    with (
        opened(str(folder / "journal.sqlite")) as (_, run),
        Target(str(image), where) as target,
        Lookup(target.open_leaf) as finder,
    ):
        assert target.layer is not None
        asked = [Query(1257472, 4096, target.layer)]
        planned = list(service.plan(target, finder, asked, options))
        service.save(run, planned, options, target=str(image), where=where, applied=True)
    change(folder)
    words = ["respond", "--resume", "--journal", str(folder / "journal.sqlite")]
    done = subprocess.run(
        [sys.executable, "-m", "whoseblock", *words],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not marker.exists()
    assert done.returncode == 13
    assert "is not safe to use" in done.stderr
