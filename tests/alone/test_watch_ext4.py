"""The daemon while the disk below a mounted ext4 fails."""

import os
from pathlib import Path

import pytest
from tests.alone.test_watch_kernel import of, read_bad, searched, sources_of
from tests.scenarios.test_emulated_device import BLOCK, fill
from tests.support.emulated_device import emulated
from tests.support.ext4_images import make_image
from tests.support.failing_disk import read_direct
from tests.support.mounts import mounted
from tests.support.tools import need_loop_mounts
from tests.support.watch_daemon import from_now_on, until, watching

from whoseblock.fs.mounted.fiemap import file_extents
from whoseblock.ranges import ByteRange

MIB = 1 << 20


@pytest.mark.usefixtures("tracing")
def test_failures_of_a_file_and_of_free_space(tmp_path: Path) -> None:
    need_loop_mounts()
    image = make_image(tmp_path / "disk", 64 * MIB, "-t", "ext4", "-b", "4096")
    from_now_on(tmp_path)
    with (
        emulated(image, tmp_path / "at") as served,
        served.loop() as loop,
        mounted(loop, kind="ext4", loop=False) as folder,
    ):
        root = Path(os.fsdecode(folder))
        fill(root / "hit", "hit")
        os.link(root / "hit", root / "hard")
        os.sync()
        with watching(tmp_path) as daemon, (root / "hit").open("rb"):
            at = next(file_extents(str(root / "hit"), 8 * BLOCK, BLOCK))
            place = at.physical + 8 * BLOCK - at.logical
            served.add(ByteRange(place, BLOCK))
            read_bad(root / "hit", 8)
            (history,) = until(lambda: searched(daemon.histories(), loop))
            # Others on this machine look at the ends of devices, and not at their middle.
            free = 48 * MIB
            served.add(ByteRange(free, BLOCK))
            assert not read_direct(loop, free)
            until(lambda: len(of(daemon.histories(), loop)) >= 2)
            (other,) = (one for one in of(daemon.histories(), loop) if one.failure.start == free)
            daemon.stop()
    assert history.failure.range == ByteRange(place, 512)
    assert history.failure.identity.startswith("ext4 ")
    assert {"tracepoint"} <= sources_of(history) <= {"kmsg", "tracepoint"}
    (finding,) = history.findings
    assert finding.complete, finding.notes
    (owner,) = finding.answer["owners"]
    assert owner["paths"] == ["/hard", "/hit"]
    assert owner["file_offset"] == 8 * BLOCK
    assert os.getpid() in {process["pid"] for process in owner["processes"]}
    assert [row["kind"] for row in other.findings[0].answer["owners"]] == ["free"]
