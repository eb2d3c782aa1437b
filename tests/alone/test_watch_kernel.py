"""The daemon as a real process, on a real kernel whose disk really fails.

An image that `whoseblock emulate` serves is under a loop device: reading a bad sector gives EIO,
and the kernel logs and traces the request as it does of a disk that dies.
"""

import contextlib
import mmap
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.scenarios.test_emulated_device import BLOCK, fill, forget, place_of
from tests.support.emulated_device import Emulated, emulated
from tests.support.failing_disk import TRACING, failing_disk, read_direct
from tests.support.tools import Missing, need_loop_mounts, run
from tests.support.watch_daemon import (
    Daemon,
    from_now_on,
    once,
    peak_memory,
    until,
    watching,
)
from tests.support.xfs_images import MIB, Geometry, make_image

from whoseblock.errors import NEWS
from whoseblock.journal import History
from whoseblock.ranges import ByteRange
from whoseblock.watch.sources.source_set import instance_name
from whoseblock.watch.store.reports import FailedRange
from whoseblock.watch.store.spool import Spool
from whoseblock.watch.store.state import StateFolder


@pytest.fixture
def image(tmp_path: Path) -> Path:
    need_loop_mounts()
    return make_image(tmp_path / "disk", Geometry("watched", size=32 * MIB, parent=False))


def fail(served: Emulated, root: Path, path: Path, block: int) -> int:
    """Make a block of a file fail, and read it; return its place."""
    at = place_of(root, path, block)
    served.add(ByteRange(at, BLOCK))
    read_bad(path, block)
    return at


def read_bad(path: Path, block: int) -> None:
    forget(path)
    with path.open("rb", 0) as file, pytest.raises(OSError, match="Input/output error"):
        os.pread(file.fileno(), BLOCK, block * BLOCK)


def of(histories: list[History], loop: Path) -> list[History]:
    """Return the failures of a loop device whose owners are known."""
    return [one for one in histories if one.failure.device == loop.name and one.findings]


def searched(histories: list[History], loop: Path) -> list[History]:
    """Return those whose processes were searched, after their owners were journaled."""
    return [
        one
        for one in of(histories, loop)
        if all("processes" in row for row in one.findings[-1].answer["owners"])
    ]


def sources_of(history: History) -> set[str]:
    return {report.source for report in history.reports}


@pytest.mark.usefixtures("tracing")
def test_a_failed_read_is_attributed_to_the_file(image: Path, tmp_path: Path) -> None:
    from_now_on(tmp_path)
    with failing_disk(image, tmp_path / "at") as (served, loop, root):
        fill(root / "hit", "hit")
        fill(root / "other", "other")
        os.link(root / "hit", root / "a name\nof two lines")
        os.sync()
        with watching(tmp_path) as daemon, (root / "hit").open("rb") as held:
            at = fail(served, root, root / "hit", 20)
            (history,) = until(lambda: searched(daemon.histories(), loop))
            assert history.failure.range == ByteRange(at, 512)
            assert history.failure.identity.startswith("xfs ")
            # The log tells of the same failure, unless others have filled what it takes.
            assert {"tracepoint"} <= sources_of(history) <= {"kmsg", "tracepoint"}
            (finding,) = history.findings
            assert finding.complete, finding.notes
            assert finding.answer["verified"] is True
            (owner,) = finding.answer["owners"]
            assert owner["paths"] == ["/a name\nof two lines", "/hit"]
            assert owner["file_offset"] == 20 * BLOCK
            users = {process["pid"]: process["open"] for process in owner["processes"]}
            assert [one["fd"] for one in users[os.getpid()]] == [held.fileno()]
            status = daemon.status()
            assert status["sources"]["tracepoint"]["watched"]
            assert status["counts"]["failures"][loop.name] == 1
            assert status["counts"]["bytes"]["file"] >= 512
            assert sum(status["counts"]["reaction"]) >= 1
            daemon.stop()
        # Others may have theirs.
        assert not (TRACING / "instances" / instance_name(daemon.state)).exists()
    (line,) = [line for line in daemon.log().splitlines() if f"device={loop.name} " in line]
    assert f"{root}/a name\\nof two lines, {root}/hit" in line


@pytest.mark.usefixtures("tracing")
def test_free_space_and_metadata(image: Path, tmp_path: Path) -> None:
    # Free space, and metadata: read from the raw device.
    from_now_on(tmp_path)
    with failing_disk(image, tmp_path / "at") as (served, loop, root), watching(tmp_path) as daemon:
        # The superblock; and the last block, which is free.
        wanted = {0: "metadata", image.stat().st_size - BLOCK: "free"}
        for at in wanted:
            served.add(ByteRange(at, BLOCK))
            assert not read_direct(loop, at)
        until(lambda: len(of(daemon.histories(), loop)) >= 2)
        # Others on this machine look at the ends of devices, too.
        found = {
            one.failure.start // BLOCK * BLOCK: one.findings[0].answer["owners"][0]["kind"]
            for one in of(daemon.histories(), loop)
        }
        assert found == wanted
        assert os.path.ismount(root)


@pytest.mark.usefixtures("tracing")
def test_a_killed_daemon_continues_where_it_stopped(image: Path, tmp_path: Path) -> None:
    from_now_on(tmp_path)
    with failing_disk(image, tmp_path / "at") as (served, loop, root):
        fill(root / "hit", "hit")
        os.sync()
        with watching(tmp_path) as daemon:
            first = fail(served, root, root / "hit", 8)
            until(lambda: of(daemon.histories(), loop))
            daemon.kill()
        # The trace instance is still there, and takes down what happens meanwhile.
        second = fail(served, root, root / "hit", 40)
        with watching(tmp_path) as daemon:
            until(lambda: len(of(daemon.histories(), loop)) == 2)
            daemon.stop()
        found = of(daemon.histories(), loop)
        assert {one.failure.start for one in found} == {first, second}


def test_an_unresponsive_disk_does_not_delay_others(image: Path, tmp_path: Path) -> None:
    from_now_on(tmp_path)
    with emulated(image, tmp_path / "at") as served, served.loop() as loop:
        with StateFolder(tmp_path / "state") as state:
            spool = Spool(state.path / "spool")
            for name in (loop.name, "sdzz"):
                report = FailedRange(
                    source="kmsg", at=time.time(), key=name, device=name, start=MIB, length=512
                )
                spool.put([report])
        with served.standing_still(), watching(tmp_path) as daemon:

            def journaled() -> set[str]:
                return {one.failure.device for one in daemon.histories()}

            until(lambda: journaled() >= {loop.name, "sdzz"}, 60)
            until(daemon.idle)
            daemon.stop()


def test_one_sweep_for_cron(image: Path, tmp_path: Path) -> None:
    from_now_on(tmp_path)
    with failing_disk(image, tmp_path / "at") as (served, loop, root):
        fill(root / "hit", "hit")
        os.sync()
        before = logged(loop)
        fail(served, root, root / "hit", 8)
        for _ in range(300):
            if logged(loop) > before:
                break
            time.sleep(0.1)
            read_bad(root / "hit", 8)
        else:
            # It logs ten errors in five seconds, of all disks together.
            raise Missing("other failing disks fill the kernel's log: run it when they do not")
        code, out, said = once(tmp_path)
        assert code == NEWS
        assert "new failures, 0 healed" in out
        assert f"device={loop.name} " in said


def logged(loop: Path) -> int:
    """Count the errors of a device that the kernel has logged."""
    return run(["dmesg"]).count(b"I/O error, dev %s," % os.fsencode(loop.name))


@pytest.mark.usefixtures("tracing")
def test_a_policy_for_a_mount_point(image: Path, tmp_path: Path) -> None:
    from_now_on(tmp_path)
    with failing_disk(image, tmp_path / "at") as (served, _, root):
        fill(root / "hit", "hit")
        os.sync()
        policy = tmp_path / "policy.toml"
        policy.write_text(
            f"""
            [[rule]]
            name = "tell"
            filesystem = "{root}"
            path = "{root}/*"
            owner = ["file"]
            signal = "SIGUSR1"
            signal-to = "open"
            exec = ["/bin/sh", "-c", "cat > {tmp_path}/said"]
            """
        )
        with (
            (root / "hit").open("rb") as held,
            subprocess.Popen(["sleep", "60"], stdin=held) as victim,
        ):
            held.close()
            with watching(tmp_path, "--policy", policy) as daemon:
                fail(served, root, root / "hit", 8)
                assert victim.wait(30) < 0
                until(lambda: daemon.status()["counts"]["actions"].get("signal done"))
        assert str(root / "hit").encode() in (tmp_path / "said").read_bytes()


@pytest.mark.usefixtures("tracing")
def test_probing_a_failing_device_ends_in_time(image: Path, tmp_path: Path) -> None:
    # A lookup on the device reads the same bad sector, and the kernel reports it again.
    from_now_on(tmp_path)
    with (
        emulated(image, tmp_path / "at") as served,
        served.loop() as loop,
        watching(tmp_path) as daemon,
    ):
        served.add(ByteRange(0, BLOCK))
        assert not read_direct(loop, 0)
        until(lambda: of(daemon.histories(), loop))

        def settled() -> bool:
            before = reports_of(daemon, loop)
            time.sleep(3)
            return reports_of(daemon, loop) == before

        assert until(settled)


def reports_of(daemon: Daemon, loop: Path) -> int:
    return sum(len(one.reports) for one in of(daemon.histories(), loop))


@contextlib.contextmanager
def healing(policy: Path, loop: Path) -> Iterator[None]:
    """Zero free space by a policy, on one device only."""
    policy.write_text(f'[[rule]]\ndevice = "{loop.name}"\nowner = "free"\nrespond = "zero"\n')
    yield


@pytest.mark.usefixtures("tracing")
def test_free_space_is_zeroed_if_the_policy_allows_it(image: Path, tmp_path: Path) -> None:
    from_now_on(tmp_path)
    policy = tmp_path / "policy.toml"
    free = image.stat().st_size - 4 * BLOCK
    with (
        failing_disk(image, tmp_path / "at") as (served, loop, root),
        # Of this device and no other: there are more tests, with disks of their own.
        healing(policy, loop),
        watching(tmp_path, "--policy", policy) as daemon,
    ):
        served.add(ByteRange(free, 512))
        fill(root / "kept", "kept")
        os.sync()
        at = place_of(root, root / "kept", 3)
        served.add(ByteRange(at, 512))
        assert not read_direct(loop, free)
        assert not read_direct(loop, at)
        until(lambda: daemon.status()["counts"]["actions"].get("respond done"))
        # What has an owner is left alone.
        assert served.bad() == [ByteRange(at, 512)]
        until(lambda: len(of(daemon.histories(), loop)) == 2)
        closed = {one.failure.start: one.failure.closed for one in of(daemon.histories(), loop)}
        assert closed[at] is None
        assert closed[free] is not None


@pytest.mark.usefixtures("tracing")
def test_a_burst_of_failed_requests(image: Path, tmp_path: Path) -> None:
    # A thousand failed reads at once: the log has few of them, and the number of the others.
    from_now_on(tmp_path)
    sectors = 1000
    with (
        emulated(image, tmp_path / "at") as served,
        served.loop() as loop,
        watching(tmp_path) as daemon,
        mmap.mmap(-1, 512) as buffer,
    ):
        served.add(ByteRange(16 * MIB, sectors * 512))
        for number in range(sectors):
            assert not read_direct(loop, 16 * MIB + number * 512, buffer)
        until(daemon.idle, 120)
        until(lambda: daemon.status()["counts"]["unhealed"])
        status = daemon.status()
        starts = [one.failure.start for one in of(daemon.histories(), loop)]
        assert len(set(starts)) == len(starts)
        missing = sectors - len(starts)
        assert missing == 0 or status["counts"]["lost"]["tracepoint"] >= missing
        # The log had but a few of them, and told that it had no more.
        assert status["counts"]["reports"]["tracepoint"] >= len(starts)
        assert peak_memory(daemon.process.pid) < 40 * MIB
