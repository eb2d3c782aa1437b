"""The data that owners of a failed block get, and that they do not get, on real failing media."""

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.support.failing_filesystem import (
    BLOCK,
    EXCHANGE,
    Bench,
    back_up,
    bench,
    forget,
    pattern,
    write_file,
)
from tests.support.system_calls import clone_range
from tests.support.user_folder import folder_of_user

from whoseblock.ranges import ByteRange

USER, OTHER = 1000, 1001


def clone(source: Path, target: Path, uid: int = 0) -> Path:
    """Make a reflink of a whole file that belongs to a user."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as one, target.open("wb") as two:
        clone_range(one.fileno(), 0, 0, two.fileno(), 0)
        os.fsync(two.fileno())
    os.chown(target, uid, uid)
    return target


def back_up_as(path: Path, copy: Path, content: bytes) -> Path:
    """Back a file up with its owner and mode, as ``rsync -a`` does."""
    back_up(path, copy, content)
    status = path.stat()
    os.chown(copy, status.st_uid, status.st_gid)
    copy.chmod(status.st_mode & 0o7777)
    return copy


def is_lost(path: Path) -> bool:
    """Return whether a file cannot be read."""
    forget(path)
    try:
        path.read_bytes()
    except OSError:
        return True
    return False


class Shared:
    """A setuid file of root and a user's reflink of it; block 4 is lost for both."""

    def __init__(self, served: Bench, tmp_path: Path) -> None:
        self.served = served
        self.copies = tmp_path / "backup"
        self.copies.mkdir()
        self.content = pattern("program", 9 * BLOCK)
        self.program = write_file(served.root / "bin/program", self.content)
        self.program.chmod(0o4755)
        self.hers = clone(self.program, served.root / "home/hers", USER)
        self.place = served.place(self.program, 4)
        assert len(served.owners(self.place)) == 2
        evil = bytearray(self.content)
        evil[4 * BLOCK : 4 * BLOCK + 2048] = pattern("evil", 2048)
        self.evil = bytes(evil)

    def fail(self) -> None:
        self.served.fail(ByteRange(self.place.start, 2048))

    def restore(self, *words: object, code: int = 0) -> str:
        return self.served.apply(self.place, *words, code=code)


# ---------------------------------------------------------------------- other users


def test_a_user_cannot_bring_her_copy_into_a_file_of_root(tmp_path: Path) -> None:
    with bench(tmp_path, EXCHANGE) as served:
        shared = Shared(served, tmp_path)
        hers = back_up_as(shared.hers, shared.copies / "home/hers", shared.evil)
        shared.fail()
        said = shared.restore("--restore-from", shared.copies, code=14)
        assert f"counts only for files of user {USER}" in said
        assert "left:" in said
        # Her own file got what her own copy has.
        assert shared.hers.read_bytes() == shared.evil
        assert is_lost(shared.program)
        # Nor is it one if it is named, or printed by a command.
        for words in ("--restore-file", hers), ("--restore-command", f"echo {hers}"):
            said = shared.restore(*words, code=14)
            assert f"belongs to user {USER}, and not to root or to user 0" in said
            assert is_lost(shared.program)
        assert "left" in served.steps()[0].events[-1].detail["because"]
        # As soon as there is a copy of root, --resume takes it.
        back_up_as(shared.program, shared.copies / "bin/program", shared.content)
        resumed = served.respond("--resume")
        assert "differs from the one that other owners were given" in resumed.stdout
        shared.restore("--restore-from", shared.copies)
        assert shared.program.read_bytes() == shared.content


def test_each_user_needs_a_copy_and_all_get_the_same_extent(tmp_path: Path) -> None:
    with bench(tmp_path, EXCHANGE) as served:
        shared = Shared(served, tmp_path)
        back_up_as(shared.program, shared.copies / "bin/program", shared.content)
        back_up_as(shared.hers, shared.copies / "home/hers", shared.content)
        shared.fail()
        assert "gave the good copy to 2 files" in shared.restore("--restore-from", shared.copies)
        assert shared.program.read_bytes() == shared.hers.read_bytes() == shared.content
        assert served.place(shared.program, 4) == served.place(shared.hers, 4) != shared.place
        assert shared.program.stat().st_mode & 0o7777 == 0o4755


def test_a_copy_of_root_does_not_count_for_a_user(tmp_path: Path) -> None:
    with bench(tmp_path, EXCHANGE) as served:
        shared = Shared(served, tmp_path)
        copy = back_up_as(shared.program, shared.copies / "bin/program", shared.content)
        shared.fail()
        said = shared.restore("--restore-file", copy, code=14)
        assert "gave the good copy to the file" in said
        assert "belongs to user 0, and counts only for files of that user" in said
        assert shared.program.read_bytes() == shared.content
        assert is_lost(shared.hers)
        # The journal leaves the step open, and with her own copy it ends.
        back_up_as(shared.hers, shared.copies / "home/hers", shared.content)
        assert is_lost(shared.hers)
        assert "verified" in shared.restore("--restore-from", shared.copies)
        assert shared.hers.read_bytes() == shared.content


def test_a_backup_of_a_users_file_does_not_count_for_root_because_root_owns_it(
    tmp_path: Path,
) -> None:
    # Backups often belong to root.  Her file was another one when it was backed up, and she has set
    # its time back since.
    with bench(tmp_path, EXCHANGE) as served:
        shared = Shared(served, tmp_path)
        with shared.hers.open("ab") as file:
            file.write(b"more")
            os.fsync(file.fileno())
        copy = back_up(shared.hers, tmp_path / "copy", shared.evil + b"more")
        shared.fail()
        for words in ("--restore-file", copy), ("--restore-command", f"echo {copy}"):
            said = shared.restore(*words, code=14)
            assert is_lost(shared.program)
            assert f"counts only for files of user {USER} with the same rights" in said


def test_a_copy_on_a_mount_of_a_user_is_hers_whatever_owner_it_claims(tmp_path: Path) -> None:
    with bench(tmp_path, EXCHANGE) as served:
        shared = Shared(served, tmp_path)
        shared.fail()
        time = shared.program.stat().st_mtime_ns
        with folder_of_user(tmp_path / "fuse", USER, {"program": (shared.evil, time)}) as folder:
            (served.root / "program").hardlink_to(shared.program)
            for words in ("--restore-file", folder / "program"), ("--restore-from", folder):
                said = shared.restore(*words, code=14)
                assert f"belongs to user {USER}, and not to root or to user 0" in said
        assert is_lost(shared.program)


def test_a_user_who_runs_her_file_does_not_make_a_copy_of_root_count(tmp_path: Path) -> None:
    # Like one that is immutable, it cannot be changed, and still shares the block.
    with bench(tmp_path, EXCHANGE) as served:
        shared = Shared(served, tmp_path)
        os.chown(shared.program, OTHER, OTHER)
        copy = back_up(shared.program, tmp_path / "copy", shared.content)
        shared.fail()
        subprocess.run(["chattr", "+i", shared.hers], check=True)
        try:
            said = shared.restore("--restore-file", copy, code=14)
        finally:
            subprocess.run(["chattr", "-i", shared.hers], check=True)
        assert "belongs to user 0, and counts only for files of that user" in said
        assert is_lost(shared.program)


def test_no_user_can_prevent_that_files_of_root_are_restored(tmp_path: Path) -> None:
    with bench(tmp_path, EXCHANGE) as served:
        shared = Shared(served, tmp_path)
        back_up_as(shared.program, shared.copies / "bin/program", shared.content)
        back_up_as(shared.hers, shared.copies / "home/hers", shared.evil)
        shared.fail()
        said = shared.restore("--restore-from", shared.copies, code=14)
        assert "the copies of what the files share differ from one another" in said
        assert shared.program.read_bytes() == shared.content
        assert is_lost(shared.hers)


def test_a_file_with_rights_of_a_group_needs_a_copy_of_root(tmp_path: Path) -> None:
    with bench(tmp_path, EXCHANGE) as served:
        content = pattern("game", 9 * BLOCK)
        path = write_file(served.root / "game", content)
        os.chown(path, USER, OTHER)
        path.chmod(0o2755)
        copy = back_up(path, tmp_path / "copy", content)
        os.chown(copy, USER, USER)
        place = served.place(path, 4)
        served.fail(place)
        said = served.apply(place, "--restore-file", copy, code=14)
        assert "runs with rights that only root may grant" in said
        os.chown(copy, 0, 0)
        served.apply(place, "--restore-file", copy)
        assert path.read_bytes() == content
        assert path.stat().st_mode & 0o7777 == 0o2755


# ---------------------------------------------------------------------- old and hollow copies


def test_an_older_copy_is_used_only_if_told_and_named_everywhere(tmp_path: Path) -> None:
    with bench(tmp_path, EXCHANGE) as served:
        content = pattern("file", 9 * BLOCK)
        path = write_file(served.root / "file", content)
        copy = write_file(tmp_path / "copy", content)
        os.utime(copy, ns=(0, 1_700_000_000_123_456_789))
        place = served.place(path, 4)
        served.fail(place)
        for words in ([], ["--verify-whole"]):
            said = served.apply(place, "--restore-file", copy, *words, code=14)
            assert "was modified at 2023-11-14 22:13:20.123456789 UTC" in said
            assert "pass --accept-older" in said
        said = served.apply(place, "--restore-file", copy, "--accept-older")
        source = {
            "name": f"the copy '{copy}'",
            "modified": "2023-11-14 22:13:20.123456789 UTC",
            "compared": 8 * BLOCK,
            "whole": False,
        }
        described = f"{copy}', modified at {source['modified']}, equal in {8 * BLOCK} bytes"
        assert described in said
        events = served.steps()[-1].events
        assert [event.detail.get("copies") for event in events] == [
            None, None, [source], [source], None,
        ]  # fmt: skip
        assert path.read_bytes() == content


def test_zeros_are_used_only_if_told(tmp_path: Path) -> None:
    with bench(tmp_path, EXCHANGE) as served:
        content = bytearray(pattern("file", 9 * BLOCK))
        content[4 * BLOCK : 5 * BLOCK] = bytes(BLOCK)
        path = write_file(served.root / "file", bytes(content))
        copy = back_up(path, tmp_path / "copy", bytes(content))
        places = [served.place(path, block) for block in (2, 4, 6)]
        served.fail(*places)
        copied = {"--restore-file": copy}
        words = [word for pair in copied.items() for word in pair]
        said = served.apply(places[1], *words, code=14)
        assert "has only zeros at 16384+4096" in said
        rescued = tmp_path / "map"
        rescued.write_text("0x0 + 1\n0x0 0x5000 +\n0x5000 0x4000 -\n")
        served.apply(places[1], *words, "--restore-map", rescued)
        served.apply(places[0], *words, "--restore-map", rescued)
        said = served.apply(places[2], *words, "--restore-map", rescued, code=14)
        assert "was not rescued at 24576+4096" in said
        served.apply(places[2], *words)
        assert path.read_bytes() == content


# ---------------------------------------------------------------------- the page cache


def remembered(served: Bench, tmp_path: Path) -> tuple[Path, bytes, ByteRange]:
    """Make a file of which the page cache has all, and lose one block of it."""
    content = pattern("file", 9 * BLOCK)
    path = write_file(served.root / "file", content)
    place = served.place(path, 4)
    del tmp_path
    served.served.add(place)
    assert path.read_bytes() == content
    return path, content, place


@pytest.mark.parametrize("words", ["--punch", "--restore-cached", "--punch --quarantine"])
def test_what_memory_has_is_written_and_not_destroyed(tmp_path: Path, words: str) -> None:
    with bench(tmp_path, EXCHANGE) as served:
        path, content, place = remembered(served, tmp_path)
        said = served.apply(place, *words.split())
        assert f"from the page cache of inode {path.stat().st_ino}" in said
        forget(path)
        assert path.read_bytes() == content
        details = [event.detail.get("copies", []) for event in served.steps()[-1].events]
        assert any(
            one["name"] == f"the page cache of inode {path.stat().st_ino}"
            for found in details
            for one in found
        )


def test_without_memory_nothing_is_restored_from_it(tmp_path: Path) -> None:
    with bench(tmp_path, EXCHANGE) as served:
        path, _, place = remembered(served, tmp_path)
        forget(path)
        said = served.apply(place, "--restore-cached", code=14)
        assert "there is no copy" in said
        assert is_lost(path)


def lose_a_write(path: Path, place: ByteRange, served: Bench) -> bytes:
    """Write a block whose writeback fails; the page cache alone has it. Return it."""
    served.served.add(place, permanent=True)
    new = pattern("newer", BLOCK)
    fd = os.open(path, os.O_WRONLY)
    try:
        os.pwrite(fd, new, 4 * BLOCK)
        with contextlib.suppress(OSError):
            os.fsync(fd)
    finally:
        os.close(fd)
    # A new attempt to write would succeed.
    served.served.write("good", place)
    served.served.add(place)
    return new


@pytest.mark.parametrize("prefer", [None, "cache", "copy"])
def test_newer_data_in_memory_and_a_copy(tmp_path: Path, prefer: str | None) -> None:
    with bench(tmp_path, EXCHANGE) as served:
        content = pattern("file", 9 * BLOCK)
        path = write_file(served.root / "file", content)
        place = served.place(path, 4)
        new = lose_a_write(path, place, served)
        # A process set the time back, or wrote through a mapping.
        copy = back_up(path, tmp_path / "copy", content)
        words = ["--restore-file", copy, *(["--prefer", prefer] if prefer else [])]
        said = served.apply(place, *words, code=0 if prefer else 14)
        now = bytearray(content)
        if prefer != "copy":
            now[4 * BLOCK : 5 * BLOCK] = new
        if prefer is None:
            assert "differ: pass --prefer cache or --prefer copy" in said
            assert path.read_bytes() == now
            assert served.served.bad() == [place]
        else:
            assert path.read_bytes() == now
            forget(path)
            assert path.read_bytes() == now


def test_data_that_only_memory_has_survives_the_repair_beside_it(tmp_path: Path) -> None:
    # A write in place would drop the whole folio, which has several blocks.
    with bench(tmp_path, EXCHANGE) as served:
        content = pattern("file", 64 * BLOCK)
        path = write_file(served.root / "file", content)
        places = {block: served.place(path, block) for block in (20, 21)}
        new = {block: pattern(f"newer {block}", BLOCK) for block in places}
        for place in places.values():
            served.served.add(place, permanent=True)
        with path.open("r+b", 0) as file:
            for block, data in new.items():
                os.pwrite(file.fileno(), data, block * BLOCK)
            with contextlib.suppress(OSError):
                os.fsync(file.fileno())
        for place in places.values():
            served.served.write("good", place)
            served.served.add(place)
        for place in places.values():
            assert "the page cache of" in served.apply(place, "--restore-cached")
        forget(path)
        now = content[: 20 * BLOCK] + new[20] + new[21] + content[22 * BLOCK :]
        assert path.read_bytes() == now


def test_memory_of_one_user_does_not_count_for_another(tmp_path: Path) -> None:
    with bench(tmp_path, EXCHANGE) as served:
        shared = Shared(served, tmp_path)
        third = clone(shared.program, served.root / "third")
        shared.fail()
        forget(shared.program)
        for path in (shared.hers, third):
            assert is_lost(path)
        served.served.write("good", ByteRange(0, served.image.stat().st_size))
        shared.program.read_bytes()
        served.served.add(ByteRange(shared.place.start, 2048))
        # The files of root get what one of them has in memory; hers loses it.
        said = shared.restore("--punch")
        assert "the page cache of inode" in said
        assert shared.program.read_bytes() == third.read_bytes() == shared.content
        lost = slice(4 * BLOCK, 4 * BLOCK + 2048)
        assert shared.hers.read_bytes()[lost] == bytes(2048)
        assert served.place(shared.program, 4) == served.place(third, 4)
        assert served.served.bad() == []


def test_a_copy_fills_what_memory_does_not_have(tmp_path: Path) -> None:
    with bench(tmp_path, EXCHANGE) as served:
        content = pattern("file", 64 * BLOCK)
        path = write_file(served.root / "file", content)
        copy = back_up(path, tmp_path / "copy", content)
        place = served.place(path, 20, 2)
        served.fail(place)
        served.served.write("good", ByteRange(place.start, BLOCK))
        with path.open("rb", 0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            assert os.pread(file.fileno(), BLOCK, 20 * BLOCK)
        served.served.add(ByteRange(place.start, BLOCK))
        said = served.apply(place, "--restore-file", copy)
        assert "the page cache of inode" in said
        assert f"the copy '{copy}'" in said
        forget(path)
        assert path.read_bytes() == content


def test_a_folder_of_copies_as_backups_make_it(tmp_path: Path) -> None:
    # Owners, modes and times are those of the files.
    with bench(tmp_path, EXCHANGE) as served:
        content = pattern("file", 9 * BLOCK)
        path = write_file(served.root / "home/user/file", content)
        os.chown(path.parent, USER, USER)
        os.chown(path, USER, USER)
        shutil.copytree(served.root, tmp_path / "backup")
        for folder in ("home/user", "home/user/file"):
            os.chown(tmp_path / "backup" / folder, USER, USER)
        place = served.place(path, 4)
        served.fail(place)
        served.apply(place, "--restore-from", tmp_path / "backup")
        assert path.read_bytes() == content
