"""On a filesystem without the capabilities, every act is refused, and nothing is written."""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

from tests.support.emulated_device import Emulated, emulated
from tests.support.failing_filesystem import (
    BLOCK,
    PLAIN,
    Bench,
    bench,
    forget,
    pattern,
    write_file,
)
from tests.support.mounts import mounted
from tests.support.tools import need_loop_mounts, run
from tests.support.xfs_images import MIB

from whoseblock.fs.mounted.fiemap import file_extents
from whoseblock.fs.opening import open_mounted
from whoseblock.ranges import ByteRange

_KEEP = " and keep the failed blocks in quarantine"
#: What is passed, and what cannot be done about file data.
ACTS = {
    "nothing": ((), "restore file data"),
    "restore": (("--restore-from", "COPIES"), "restore file data"),
    "restore+quarantine": (
        ("--restore-file", "COPIES/a", "--quarantine"),
        f"restore file data{_KEEP}",
    ),
    "punch": (("--punch",), "replace file data by zeros"),
    "quarantine": (("--quarantine",), f"replace file data by zeros{_KEEP}"),
}


@contextmanager
def ext4_bench(tmp_path: Path) -> Iterator[tuple[Bench, Emulated]]:
    """Mount a new ext4 on a failing device."""
    need_loop_mounts()
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else tmp_path  # noqa: S108 - a folder of our own in it
    with tempfile.TemporaryDirectory(prefix="whoseblock-disk-", dir=memory) as folder:
        image = Path(folder) / "disk.img"
        with image.open("wb") as file:
            file.truncate(32 * MIB)
        # Nothing is left for the kernel to write later.
        run(
            [
                "mkfs.ext4",
                "-q",
                "-b",
                str(BLOCK),
                "-E",
                "lazy_itable_init=0,lazy_journal_init=0",
                image,
            ]
        )
        with (
            emulated(image, tmp_path / "served") as served,
            served.loop() as loop,
            mounted(loop, "noatime", kind="ext4", loop=False) as root,
        ):
            place = Path(os.fsdecode(root))
            yield Bench(served, image, loop, place, tmp_path / "journal.sqlite"), served


def digest(image: Path) -> str:
    with image.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def unwritten(served: Bench) -> Iterator[None]:
    """Check that not one byte of the device, and no bad sector, is changed."""
    served.sync()
    before, bad = digest(served.image), served.served.bad()
    yield
    served.sync()
    assert digest(served.image) == before
    assert served.served.bad() == bad


def test_every_act_on_a_mounted_ext4_is_refused(tmp_path: Path) -> None:
    content = pattern("ext4", 16 * BLOCK)
    copy = write_file(tmp_path / "copies" / "a", content)
    with ext4_bench(tmp_path) as (served, device):
        path = write_file(served.root / "a", content)
        served.sync()
        (extent, *_) = file_extents(str(path), 0, len(content))
        filesystem = open_mounted(served.device.stat().st_rdev)
        assert filesystem is not None
        with closing(filesystem):
            identity = filesystem.identity
            rows = filesystem.owners(0, filesystem.device_size, paths=False)
        free = max((row for row in rows if row.kind == "free"), key=lambda row: row.length)
        places = (
            ByteRange(free.start + free.length // 2 // BLOCK * BLOCK, BLOCK),
            ByteRange(extent.physical + 2 * BLOCK, BLOCK),
        )
        for place in places:
            device.add(ByteRange(place.start, 512))
        forget(path)
        for name, (words, reason) in ACTS.items():
            given = [word.replace("COPIES", str(copy.parent)) for word in words]
            with unwritten(served):
                said = served.apply(*places, *given, code=14)
            for text in "zero free blocks", reason:
                assert f"cannot {text} on this ext4 without" in said, name
            assert said.count("nothing is changed") == 4
        with unwritten(served):
            planned = served.respond(*places)
        assert (planned.returncode, planned.stderr) == (0, "")
        assert planned.stdout.count("on this ext4 without") == 2
        assert {state for states in served.states() for state in states} == {"planned", "skipped"}
        assert {one.failure.identity for one in served.journaled()} == {identity}
        assert identity


def test_every_act_on_a_mounted_xfs_without_a_reverse_map_is_refused(tmp_path: Path) -> None:
    content = pattern("xfs", 16 * BLOCK)
    copy = write_file(tmp_path / "copies" / "a", content)
    with bench(tmp_path, replace(PLAIN, rmapbt=False)) as served:
        path = write_file(served.root / "a", content)
        served.sync()
        (extent, *_) = file_extents(str(path), 0, len(content))
        free = max((row for row in served.rows() if row.kind == "free"), key=lambda row: row.length)
        places = (
            ByteRange(free.start + free.length // 2 // BLOCK * BLOCK, BLOCK),
            ByteRange(extent.physical + 2 * BLOCK, BLOCK),
        )
        for place in places:
            served.served.add(ByteRange(place.start, 512))
        forget(path)
        for name, (words, reason) in ACTS.items():
            given = [word.replace("COPIES", str(copy.parent)) for word in words]
            said = served.apply(*places, *given, code=14)
            for text in "zero free blocks", reason:
                assert f"cannot {text} on this xfs without" in said, name
        # Not one bad sector was written to.
        assert served.served.bad() == sorted(ByteRange(place.start, 512) for place in places)


def test_an_unmounted_ext4_is_refused(tmp_path: Path) -> None:
    need_loop_mounts()
    image, copy = tmp_path / "disk.img", write_file(tmp_path / "a", b"a")
    with image.open("wb") as file:
        file.truncate(8 * MIB)
    run(["mkfs.ext4", "-q", "-b", str(BLOCK), image])
    bad = ByteRange(7 * MIB, 512)
    with emulated(image, tmp_path / "served", bad=[bad]) as served:
        bench = Bench(served, image, served.device, tmp_path, tmp_path / "journal.sqlite")
        before = digest(image)
        for words, why in (
            (["--restore-file", copy], "on this ext4 without"),
            (["--punch"], "on this ext4 without"),
            (["--punch", "--quarantine"], "only while the filesystem is mounted"),
        ):
            said = bench.apply(bad, *words, code=14, target=served.device)
            assert why in said
        assert digest(image) == before
        assert served.bad() == [bad]
