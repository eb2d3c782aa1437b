"""Blocks that do not heal stay in quarantine, and only files of root's count as such."""

import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.support.failing_filesystem import (
    BLOCK,
    KINDS,
    Bench,
    bench,
    pattern,
    write_file,
)
from tests.support.shared_blocks import share_five
from tests.support.system_calls import fallocate
from tests.support.tools import CHECKOUT, run
from tests.support.xfs_images import Geometry

from whoseblock.cli.group import cli
from whoseblock.fs.xfs.mounted.volume import MountedXfs
from whoseblock.ranges import ByteRange

FOLDER = ".whoseblock-quarantine"
USER = 65534
kinds = pytest.mark.parametrize("kind", KINDS[:2], ids=lambda kind: kind.name)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Bench]:
    with bench(tmp_path) as made:
        # The kernel takes the allocation groups in turn: each has inodes.
        for number in range(8):
            (made.root / f"folder{number}").mkdir()
        yield made


def folders(served: Bench) -> list[str]:
    return sorted(name for name in os.listdir(served.root) if name.startswith(FOLDER))


def test_free_blocks_that_do_not_heal_are_not_allocated_again(served: Bench) -> None:
    run = served.free(4)
    bad = ByteRange(run.start + BLOCK, 512)
    served.fail(bad, permanent=True)
    said = served.apply(run, code=14)
    assert "refuses the write" in said
    assert "in quarantine" in said
    (kept,) = (served.root / FOLDER).iterdir()
    assert kept.name == f"{run.start + BLOCK}+{BLOCK}"
    for number in range(400):
        write_file(served.root / f"folder{number % 8}/{number}", pattern("file", BLOCK))
    with pytest.raises(OSError, match="No space"):
        write_file(served.root / "full", bytes(1 << 26))
    (row,) = served.owners(ByteRange(run.start + BLOCK, BLOCK))
    assert row.inode == kept.stat().st_ino
    (served.root / "full").unlink()
    # A new plan has nothing to do; the interrupted step ends.
    assert "in quarantine" in served.respond(bad).stdout
    assert "in quarantine" in served.respond("--resume").stdout
    assert served.steps()[0].state == "verified"
    assert kept.exists()


def test_free_blocks_that_heal_at_the_next_attempt_are_free_again(served: Bench) -> None:
    run = served.free(1)
    bad = ByteRange(run.start, 512)
    served.fail(bad, permanent=True)
    served.apply(run, code=14)
    assert folders(served) == [FOLDER]
    served.served.write("good", bad)
    served.served.add(bad)
    assert "verified" in served.respond("--resume").stdout
    assert served.served.bad() == []
    assert folders(served) == []
    (row,) = served.owners(run)
    assert row.kind == "free"


def test_free_blocks_are_put_into_quarantine(served: Bench) -> None:
    run = served.free(2)
    served.fail(ByteRange(run.start, 512))
    said = served.apply(run, "--quarantine")
    assert "verified" in said
    assert "in quarantine" in said
    (kept,) = (served.root / FOLDER).iterdir()
    (row,) = served.owners(ByteRange(run.start, BLOCK))
    assert row.inode == kept.stat().st_ino
    with pytest.raises(PermissionError):
        kept.unlink()
    assert kept.stat().st_size == BLOCK


def test_space_never_written_is_freed_first(served: Bench) -> None:
    path = write_file(served.root / "a file", b"")
    with path.open("r+b") as file:
        fallocate(file.fileno(), 0, 4 * BLOCK)
    served.sync()
    bad = ByteRange(served.place(path, 2).start, 512)
    served.fail(bad)
    said = served.apply(bad, "--quarantine", code=14)
    assert "skipped: advise" in said
    remedy = said.partition("free it first, with: ")[2].partition(", or plan the repair")[0]
    subprocess.run(remedy, shell=True, check=True)  # noqa: S602 - the command that users get
    served.sync()
    assert "in quarantine" in served.apply(bad, "--quarantine")
    assert path.stat().st_size == 4 * BLOCK


def test_free_blocks_that_cannot_be_kept_are_named(
    served: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MountedXfs, "capture", lambda *_: None)
    run = served.free(1)
    served.fail(run, permanent=True)
    words = [str(served.root), str(run), "--apply", "--yes", "--journal", str(served.journal)]
    said = CliRunner().invoke(cli, ["respond", *words, "--quarantine"]).output
    assert "failed: zero" in said
    assert f"{run} cannot be allocated to a file in quarantine now: resume" in said
    said = CliRunner().invoke(cli, ["respond", *words]).output
    assert f"{run}: not in quarantine, may be allocated" in said
    monkeypatch.undo()
    served.served.write("good", run)
    assert served.respond("--resume").returncode == 0
    assert folders(served) == []


@kinds
def test_file_data_is_restored_and_its_blocks_stay(tmp_path: Path, kind: Geometry) -> None:
    with bench(tmp_path, kind) as served:
        five = share_five(served, tmp_path / "copies")
        lost = ByteRange(five.place.start + 1024, 512)
        served.fail(lost, permanent=True)
        assert "in quarantine" in served.apply(lost, "--restore-from", five.copies, code=14)
        five.check_whole(served)
        (kept,) = (served.root / FOLDER).iterdir()
        (row,) = served.owners(ByteRange(five.place.start, BLOCK))
        assert row.inode == kept.stat().st_ino
        done = served.respond("--resume")
        assert done.returncode == 0, done.stdout
        assert served.steps()[0].state == "verified"
        five.check_whole(served)


def look_alike(served: Bench, name: str = FOLDER) -> Path:
    """Make the folder of another user, who may write to the root of the filesystem."""
    served.root.chmod(0o1777)
    folder = served.root / name
    folder.mkdir(mode=0o777)
    os.chown(folder, USER, USER)
    return folder


def test_a_file_of_a_user_is_no_quarantine(served: Bench) -> None:
    folder = look_alike(served)
    path = write_file(folder / "0+999999999", pattern("file", 4 * BLOCK))
    os.chown(path, USER, USER)
    copy = write_file(served.journal.parent / "copy", path.read_bytes())
    os.utime(copy, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    lost = ByteRange(served.place(path, 1).start, 512)
    served.fail(lost)
    assert "in quarantine" not in served.respond(lost).stdout
    served.apply(lost, "--restore-file", copy)
    assert path.read_bytes() == copy.read_bytes()
    assert served.served.bad() == []


@pytest.mark.parametrize("kind", ["folder", "link", "file", "open-to-all"])
def test_a_name_that_is_taken_blocks_nothing(served: Bench, kind: str) -> None:
    other = served.root / "folder0"
    if kind == "folder":
        look_alike(served)
    elif kind == "link":
        (served.root / FOLDER).symlink_to(other)
    elif kind == "file":
        write_file(served.root / FOLDER, b"x")
    else:
        (served.root / FOLDER).mkdir()
        (served.root / FOLDER).chmod(0o755)
    run = served.free(1)
    served.fail(run, permanent=True)
    assert "in quarantine" in served.apply(run, "--quarantine")
    name, own = folders(served)
    assert name == FOLDER
    status = (served.root / own).stat()
    assert (status.st_uid, status.st_mode & 0o777) == (0, 0o700)
    (kept,) = (served.root / own).iterdir()
    (row,) = served.owners(run)
    assert row.inode == kept.stat().st_ino
    assert not list(other.iterdir())
    # It is found again there.
    assert "in quarantine" in served.respond(run).stdout
    more = ByteRange(run.start - 4 * BLOCK, 512)
    served.fail(more, permanent=True)
    served.apply(more, "--quarantine")
    assert folders(served) == [name, own]
    assert len(list((served.root / own).iterdir())) == 2


def test_the_guide_excludes_every_quarantine_from_a_backup_and_no_more(tmp_path: Path) -> None:
    guide = (CHECKOUT / "docs/guides/respond.md").read_text("utf-8")
    (line,) = (line for line in guide.splitlines() if line.startswith("tar --exclude"))
    words = shlex.split(line.removesuffix("…"))
    ours = [FOLDER, f"{FOLDER}-0ab1"]
    for name in (*ours, f"sub/{FOLDER}"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "0+4096").touch()
    archive = run([*words, "-C", tmp_path, "-cf", "-", "."])
    names = run(["tar", "-tf", "-"], archive).decode().split()
    assert [name for name in names if name.endswith("+4096")] == [f"./sub/{FOLDER}/0+4096"]
