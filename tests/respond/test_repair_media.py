"""More of the medium fails in the middle of a step: it is reported, and no owner loses a byte."""

import contextlib
import os
import shlex
import subprocess
from pathlib import Path

import pytest
from tests.support.failing_filesystem import (
    BLOCK,
    EXCHANGE,
    KINDS,
    Bench,
    back_up,
    bench,
    forget,
    pattern,
    write_file,
)
from tests.support.shared_blocks import Five, share_five
from tests.support.xfs_images import Geometry

from whoseblock.ranges import ByteRange

kinds = pytest.mark.parametrize("kind", KINDS[:2], ids=lambda kind: kind.name)


def failing_on_the_way(served: Bench, what: str, copy: Path | None = None) -> str:
    """Return a command that causes a failure, and then prints a copy."""
    control = shlex.quote(str(served.served.control))
    return f"echo {shlex.quote(what)} > {control}; echo {'' if copy is None else copy}"


def unreadable(path: Path) -> bool:
    forget(path)
    try:
        path.read_bytes()
    except OSError:
        return True
    return False


def check_readable(served: Bench, five: Five, at: ByteRange) -> None:
    """See that all owners are whole, or fail where their old block does, and only there."""
    for path, number in five.files.items():
        content = five.copy_of(path, served).read_bytes()
        first = number * BLOCK + at.start - five.place.start
        forget(path)
        with open(os.open(path, os.O_RDONLY | os.O_NOATIME), "rb", 0) as file:
            for block in range(0, len(content), BLOCK):
                file.seek(block)
                try:
                    found = file.read(BLOCK)
                except OSError:
                    assert block == first // BLOCK * BLOCK
                else:
                    assert found == content[block : block + BLOCK]


@kinds
@pytest.mark.parametrize("mark", ["bad", "permanent"])
def test_the_rest_of_the_block_fails_while_it_is_restored(
    tmp_path: Path, kind: Geometry, mark: str
) -> None:
    with bench(tmp_path, kind) as served:
        five = share_five(served, tmp_path / "copies")
        lost = ByteRange(five.place.start, 512)
        served.fail(lost)
        more = ByteRange(five.place.start + 2048, 512)
        copy = five.copy_of(served.root / "c", served)
        command = failing_on_the_way(served, f"{mark} {more}", copy)
        served.respond(lost, "--restore-command", command, "--apply", "--yes")
        check_readable(served, five, five.place)
        # Then it is known, and done.
        done = served.respond(five.place, "--restore-from", five.copies, "--apply", "--yes")
        assert done.returncode == (0 if mark == "bad" else 14) or "free" in done.stdout
        for path in five.files:
            assert path.read_bytes() == five.copy_of(path, served).read_bytes()


def test_the_command_runs_once_if_the_sector_does_not_heal_in_place(tmp_path: Path) -> None:
    with bench(tmp_path) as served:
        content = pattern("file", 9 * BLOCK)
        path = write_file(served.root / "file", content)
        copy = back_up(path, tmp_path / "copy", content)
        ran = tmp_path / "ran"
        served.fail(served.place(path, 4), permanent=True)
        command = f"echo $WHOSEBLOCK_PATH >> {ran}; echo {copy}"
        served.respond(served.place(path, 4), "--restore-command", command, "--apply", "--yes")
        assert path.read_bytes() == content
        assert ran.read_text() == "/file\n"


@kinds
def test_the_copy_fails(tmp_path: Path, kind: Geometry) -> None:
    # It is on the very device, beside the file.
    with bench(tmp_path, kind) as served:
        content = pattern("file", 9 * BLOCK)
        path = write_file(served.root / "file", content)
        copy = back_up(path, served.root / "copy", content)
        place, other = served.place(path, 4), served.place(copy, 4)
        served.fail(place, ByteRange(other.start + 512, 512))
        said = served.apply(place, "--restore-file", copy, code=14)
        assert "is unreadable itself" in said
        assert unreadable(path)
        assert place in served.served.bad()
        # A reflink of the damaged file is no copy either.
        clone = served.root / "clone"
        subprocess.run(["cp", "--reflink=always", "--preserve=timestamps", path, clone], check=True)
        said = served.apply(place, "--restore-file", clone, code=14)
        assert "is unreadable itself" in said


@kinds
@pytest.mark.parametrize("words", [[], ["--quarantine"]], ids=["plain", "quarantine"])
def test_no_block_can_be_written(tmp_path: Path, kind: Geometry, words: list[str]) -> None:
    # All free space is permanent: there is no place for the replacement.
    with bench(tmp_path, kind) as served:
        five = share_five(served, tmp_path / "copies")
        lost = ByteRange(five.place.start + 512, 512)
        served.fail(lost)
        for row in served.rows():
            if row.kind == "free":
                served.served.add(ByteRange(row.start, row.length), permanent=True)
        said = served.apply(lost, "--restore-from", five.copies, *words, code=14)
        assert "failed" in said
        assert served.steps()[-1].state == "failed"
        check_readable(served, five, lost)
        with contextlib.suppress(OSError):
            # It tells once of what could not be written.
            served.sync()
        assert {row.inode for row in served.owners(five.place)} >= {
            path.stat().st_ino for path in five.files
        }
        # As soon as there is one, --resume does it.
        served.served.write("good", ByteRange(0, served.image.stat().st_size))
        served.served.add(lost)
        resumed = served.respond("--resume")
        assert resumed.returncode == 0, resumed.stdout + resumed.stderr
        five.check_whole(served)
        assert lost not in served.served.bad() or words


@kinds
def test_the_device_begins_to_refuse_writes(tmp_path: Path, kind: Geometry) -> None:
    # What was bad becomes permanent when its owners have the copy already.
    with bench(tmp_path, kind) as served:
        five = share_five(served, tmp_path / "copies")
        lost = ByteRange(five.place.start + 512, 512)
        served.fail(lost)
        copy = five.copy_of(served.root / "a", served)
        command = failing_on_the_way(served, f"permanent {lost}", copy)
        words = ["--restore-command", command, "--restore-from", five.copies]
        said = served.apply(lost, *words, code=14)
        assert "failed" in said
        for path in five.files:
            assert path.read_bytes() == five.copy_of(path, served).read_bytes()
        assert served.served.bad() == [lost]


def test_free_space_fails_while_it_is_zeroed(tmp_path: Path) -> None:
    with bench(tmp_path, EXCHANGE) as served:
        run = served.free(2)
        served.fail(ByteRange(run.start, 512))
        # The plan is made, and then there is more.
        more = ByteRange(run.start + 1024, 512)
        command = failing_on_the_way(served, f"bad {more}")
        served.apply(run, "--exec", command)
        assert served.served.bad() == []


@kinds
def test_failed_writes_of_other_files_do_not_matter(tmp_path: Path, kind: Geometry) -> None:
    # On a failing device, the replacement may be the first data that cannot be written.
    with bench(tmp_path, kind) as served:
        five = share_five(served, tmp_path / "copies")
        path = write_file(served.root / "elsewhere", pattern("elsewhere", 4 * BLOCK))
        place = served.place(path, 1)
        lost, free = ByteRange(five.place.start + 512, 512), served.free(1)
        served.fail(lost, free)
        for failing, words in ((free, []), (lost, ["--restore-from", five.copies])):
            served.served.add(place, permanent=True)
            write_file(path, pattern("new", BLOCK), BLOCK)
            os.sync()
            said = served.apply(failing, *words)
            assert "verified" in said
        assert served.served.bad() == [place]
