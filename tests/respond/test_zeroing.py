"""Failed sectors of free space: exactly these are zeroed, and the device heals."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.emulated_device import emulated
from tests.support.failing_filesystem import (
    BLOCK,
    EXCHANGE,
    KINDS,
    PLAIN,
    Bench,
    back_up,
    bench,
    geometry,
    pattern,
    serving,
    write_file,
)
from tests.support.file_creation import creating
from tests.support.mounts import frozen, loop_device, loop_device_elsewhere, mounted
from tests.support.system_calls import fallocate
from tests.support.xfs_images import MIB, Geometry

from whoseblock.ranges import ByteRange

kinds = pytest.mark.parametrize("kind", KINDS[:2], ids=lambda kind: kind.name)
MOST_S = 5.0


def fill_free(served: Bench) -> None:
    """Fill all free space with a pattern."""
    path = served.root / "filler"
    some = pattern("free", MIB)
    with contextlib.suppress(OSError), path.open("wb", 0) as file:
        while file.write(some):
            pass
    served.sync()
    # The kernel frees the blocks of an unlinked file only later.
    os.truncate(path, 0)
    path.unlink()
    served.sync()


def zeroed(content: bytes, at: int, *ranges: ByteRange) -> bytes:
    data = bytearray(content)
    for start, length in ranges:
        data[start - at : start - at + length] = bytes(length)
    return bytes(data)


@kinds
def test_while_files_are_created_at_full_speed(tmp_path: Path, kind: Geometry) -> None:
    # Files are created in two of the groups, so that free space of the third is not allocated.
    with bench(tmp_path, replace(kind, groups=3)) as served:
        fill_free(served)
        write_file(served.root / "kept", pattern("kept", 20 * BLOCK))
        folders = [served.root / name for name in ("one", "two")]
        for folder in folders:
            folder.mkdir()
        run = served.free(8, away_from=folders)
        bad = [
            ByteRange(run.start + 512, 512),
            ByteRange(run.start + BLOCK - 512, 1024),
            ByteRange(run.start + 5 * BLOCK, BLOCK),
        ]
        with creating(*folders) as tempos:
            for number, one in enumerate(bad):
                served.served.add(one)
                before = served.bytes_at(run)
                said = served.apply(one)
                assert f"zeroed {one}" in said
                assert served.served.bad() == [], number
                # Not a byte of a neighbour: each still has the pattern that was there.
                assert served.bytes_at(run) == zeroed(before, run.start, one)
                assert any(before[one.start - run.start :][: one.length])
        assert all(tempo.files > 100 for tempo in tempos)
        assert max(tempo.longest_s for tempo in tempos) < MOST_S
        assert served.states() == [["planned", "started", "done", "verified"]] * 3
        assert (served.root / "kept").read_bytes() == pattern("kept", 20 * BLOCK)
        # It is not frozen any more.
        with frozen(os.fsencode(served.root)):
            pass


def test_permanent_free_space_is_reported(tmp_path: Path) -> None:
    with bench(tmp_path) as served:
        run = served.free(4)
        served.fail(ByteRange(run.start, 512))
        served.fail(ByteRange(run.start + BLOCK, 512), permanent=True)
        served.fail(ByteRange(run.start + 2 * BLOCK, 512))
        said = served.apply(run, code=14)
        assert "refuses the write" in said
        assert served.states() == [["planned", "started", "failed"]]
        # What comes after it is healed all the same.
        assert served.served.bad() == [ByteRange(run.start + BLOCK, 512)]
        # It can be tried again, and then the reason may be gone.
        served.served.write("good", ByteRange(run.start + BLOCK, 512))
        served.served.add(ByteRange(run.start + BLOCK, 512))
        said = served.respond("--resume").stdout
        assert "verified" in said
        assert served.served.bad() == []


def test_a_large_range(tmp_path: Path) -> None:
    # It is zeroed in pieces, and others have their turn in between.
    with bench(tmp_path) as served:
        fill_free(served)
        rows = [row for row in served.rows() if row.kind == "free"]
        row = max(rows, key=lambda row: row.length)
        bad = ByteRange(row.start, row.length // BLOCK * BLOCK // 2)
        assert bad.length > 5 * MIB
        served.served.add(bad)
        served.apply(bad)
        assert served.served.bad() == []
        assert not any(served.bytes_at(bad))
        assert all(served.bytes_at(ByteRange(bad.end, BLOCK)))


def test_a_filesystem_frozen_by_another_process(tmp_path: Path) -> None:
    with bench(tmp_path) as served:
        run = served.free(1)
        served.fail(run)
        with frozen(os.fsencode(served.root)):
            said = served.apply(run, code=14)
        assert "frozen" in said
        assert served.served.bad() == [run]


def test_space_that_was_never_written(tmp_path: Path) -> None:
    with bench(tmp_path) as served:
        fill_free(served)
        path = write_file(served.root / "file", pattern("file", BLOCK))
        with path.open("r+b") as file:
            fallocate(file.fileno(), BLOCK, 8 * BLOCK)
        served.sync()
        place = served.place(path, 3, 2)
        bad = ByteRange(place.start + 1024, BLOCK)
        served.fail(bad)
        rows, before = served.rows_of(path), served.bytes_at(place)
        said = served.apply(bad)
        assert "never written" in said
        assert served.rows_of(path) == rows
        assert served.bytes_at(place) == zeroed(before, place.start, bad)
        assert served.served.bad() == []
        assert path.read_bytes() == pattern("file", BLOCK) + bytes(8 * BLOCK)


@pytest.mark.parametrize(
    ("block", "sector"),
    [(1024, 512), (65536, 512), (4096, 4096)],
    ids=["small-blocks", "large-blocks", "large-sectors"],
)
def test_other_sizes(tmp_path: Path, block: int, sector: int) -> None:
    kind = geometry("sizes", parent=True, exchange=True, block=block, size=640 * MIB, sector=sector)
    with bench(tmp_path, kind, sector=sector) as served:
        run = served.free(4)
        bad = ByteRange(run.start + block - sector, 2 * sector)
        served.fail(bad)
        served.apply(bad)
        assert served.served.bad() == []
        path = write_file(served.root / "file", pattern("file", 5 * block - 100))
        copy = back_up(path, tmp_path / "copies/file", path.read_bytes())
        place = served.place(path, 4)
        lost = ByteRange(place.start, sector)
        served.fail(lost)
        served.apply(lost, "--restore-file", copy)
        assert served.served.bad() == []
        assert path.read_bytes() == copy.read_bytes()


# ---------------------------------------------------------------------- not mounted


@contextlib.contextmanager
def unmounted(tmp_path: Path, kind: Geometry) -> Iterator[tuple[Bench, ByteRange]]:
    """Provide a clean failing image, and a free range of it that is filled with a pattern."""
    with serving(tmp_path, kind) as (served, image):
        with served.loop() as loop, mounted(loop, loop=False) as folder:
            root = Path(os.fsdecode(folder))
            there = Bench(served, image, loop, root, tmp_path / "journal.sqlite")
            fill_free(there)
            write_file(root / "file", pattern("file", 10 * BLOCK))
            run = there.free(4)
        yield Bench(served, image, served.device, tmp_path, tmp_path / "journal.sqlite"), run


@kinds
@pytest.mark.parametrize("loop", [True, False], ids=["loop", "image"])
def test_unmounted(tmp_path: Path, kind: Geometry, loop: bool) -> None:  # noqa: FBT001 - of the test
    with unmounted(tmp_path, kind) as (served, run), contextlib.ExitStack() as stack:
        target = stack.enter_context(served.served.loop()) if loop else served.device
        bad = [ByteRange(run.start + 512, 512), ByteRange(run.start + BLOCK, BLOCK)]
        for one in bad:
            served.served.add(one)
        before = served.image.read_bytes()
        writes = served.served.statistics()["writes"]
        said = served.apply(run, target=target)
        assert "verified" in said
        assert served.served.bad() == []
        assert served.image.read_bytes() == zeroed(before, 0, *bad)
        assert served.served.statistics()["writes"] == writes + len(bad)


def test_without_apply_nothing_is_written(tmp_path: Path) -> None:
    with unmounted(tmp_path, EXCHANGE) as (served, run):
        served.served.add(run)
        before, counts = served.image.read_bytes(), served.served.statistics()["writes"]
        assert served.respond(run, target=served.device).returncode == 0
        assert served.image.read_bytes() == before
        assert served.served.statistics()["writes"] == counts
        assert served.states() == [["planned"]]
        # What was only planned is never gone on with.
        assert "no interrupted steps" in served.respond("--resume").stderr
        assert served.served.bad() == [run]


def test_a_dirty_log_is_refused(tmp_path: Path) -> None:
    with bench(tmp_path, PLAIN) as mounted_one:
        write_file(mounted_one.root / "file", pattern("file", BLOCK))
        run = mounted_one.free(2)
        with frozen(os.fsencode(mounted_one.root)):
            copy = Path(shutil.copy(mounted_one.image, tmp_path / "copy.img"))
        with emulated(copy, tmp_path / "other", bad=[run]) as served:
            there = Bench(served, copy, served.device, tmp_path, tmp_path / "journal.sqlite")
            before = copy.read_bytes()
            said = there.apply(run, target=served.device, code=14)
            assert "log" in said
            assert copy.read_bytes() == before
            assert served.bad() == [run]


def test_a_device_in_use_is_refused(tmp_path: Path) -> None:
    with bench(tmp_path) as served:
        run = served.free(2)
        served.fail(run)
        # Even if the mounted filesystem is bypassed, the device is still busy.
        for target in (served.device, served.served.device):
            said = served.apply(run, "--offline", target=target, code=14)
            assert "skipped" in said
            assert served.served.bad() == [run]
            assert served.served.statistics()["sectors_healed"] == 0


@pytest.mark.parametrize("how", ["locked", "loop", "elsewhere", "written"])
def test_an_image_in_use_is_refused(tmp_path: Path, how: str) -> None:
    with unmounted(tmp_path, PLAIN) as (served, run), contextlib.ExitStack() as stack:
        served.served.add(run)
        if how == "locked":
            file = stack.enter_context(served.device.open("rb"))
            fcntl.flock(file, fcntl.LOCK_SH)
            why = "locked"
        elif how == "written":
            stack.enter_context(served.device.open("r+b"))
            why = "open for writing elsewhere"
        else:
            attach = loop_device if how == "loop" else loop_device_elsewhere
            stack.enter_context(attach(served.device))
            why = "in use by"
        said = served.apply(run, target=served.device, code=14)
        assert why in said
        assert served.served.bad() == [run]
