"""Read-only mounts: nothing is written to the device unless that is allowed."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from tests.support.failing_filesystem import (
    BLOCK,
    EXCHANGE,
    Bench,
    bench,
    pattern,
    serving,
    write_file,
)
from tests.support.mounts import mounted, shut_down
from tests.support.tools import run

from whoseblock.ranges import ByteRange

NOTHING = "the filesystem is mounted read-only: nothing is written"
NEVERTHELESS = "although the filesystem is mounted read-only"


@contextlib.contextmanager
def crashed(tmp_path: Path) -> Iterator[tuple[Bench, ByteRange]]:
    """Mount without recovery what crashed; give the place of a file that is only in the log."""
    with serving(tmp_path, EXCHANGE) as (served, image), served.loop() as loop:
        journal = tmp_path / "journal.sqlite"
        with mounted(loop, loop=False) as folder:
            path = write_file(Path(os.fsdecode(folder), "new"), pattern("new", 4 * BLOCK))
            before = Bench(served, image, loop, path.parent, journal)
            place = before.place(path, 0, 4)
            shut_down(folder)
        with mounted(loop, "ro", "norecovery", loop=False) as folder:
            yield Bench(served, image, loop, Path(os.fsdecode(folder)), journal), place


def test_what_is_only_in_the_log_is_not_zeroed(tmp_path: Path) -> None:
    with crashed(tmp_path) as (served, place):
        bad = ByteRange(place.start + BLOCK, 512)
        served.served.add(bad)
        # The kernel takes these blocks for free.
        assert {row.kind for row in served.owners(bad)} == {"free"}
        before = served.bytes_at(place)
        for allowed in ([], ["--write-read-only"]):
            plan = served.respond(bad, *allowed)
            assert "mounted with norecovery, and the log is dirty" in plan.stdout
            said = served.apply(bad, *allowed, code=14)
            assert "skipped: advise" in said
            assert served.served.bad() == [bad]
            assert served.bytes_at(place) == before


def test_a_read_only_mount_is_written_only_if_allowed(tmp_path: Path) -> None:
    with bench(tmp_path, EXCHANGE, "ro") as served:
        run_ = served.free(4)
        bad = ByteRange(run_.start + 512, 512)
        served.served.add(bad)
        assert NOTHING in served.respond(bad).stdout
        assert NOTHING in served.apply(bad, code=14)
        assert served.served.bad() == [bad]
        plan = served.respond(bad, "--write-read-only").stdout
        assert "its device is written nevertheless" in plan
        said = served.apply(bad, "--write-read-only")
        assert f"zeroed {bad}, {NEVERTHELESS}" in said
        assert served.served.bad() == []


def test_files_of_a_read_only_mount_are_not_changed(tmp_path: Path) -> None:
    with bench(tmp_path) as served:
        path = write_file(served.root / "a", pattern("a", 4 * BLOCK))
        bad = ByteRange(served.place(path, 1).start, 512)
        served.fail(bad)
        run(["mount", "-o", "remount,ro", served.root])
        for how in ("--punch", "--write-read-only"), ("--punch",):
            said = served.apply(bad, *how, code=14)
            assert "file data is changed only while it is writable: remount it" in said
            assert served.served.bad() == [bad]


def test_a_mount_that_became_read_only_is_not_written(tmp_path: Path) -> None:
    with bench(tmp_path) as served:
        bad = ByteRange(served.free(4).start, 512)
        served.served.add(bad)
        # The command of the first step stands for anything between plan and act.
        said = served.apply(bad, "--exec", f"mount -o remount,ro {served.root}", code=14)
        assert NOTHING in said
        assert served.served.bad() == [bad]
