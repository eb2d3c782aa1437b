"""Ten thousand failures at once, before the daemon as a real process on a real kernel.

The kernel's log has a few of them.  The tracepoint has all, or the kernel says how many found no
room.
"""

import mmap
import os
import re
import signal
import sqlite3
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.scenarios.test_emulated_device import BLOCK, place_of
from tests.support.failing_disk import failing_disk
from tests.support.tools import need_loop_mounts
from tests.support.watch_daemon import Daemon, from_now_on, peak_memory, until, watching
from tests.support.xfs_images import MIB, Geometry, make_image

from whoseblock.ranges import ByteRange

SECTORS, SECTOR = 10_000, 512
#: What neither process of the daemon may ever have needed, however many failures there are.
MOST_COLLECTOR, MOST_WORKER = 40 * MIB, 128 * MIB

pytestmark = pytest.mark.usefixtures("tracing")


class Burst(NamedTuple):
    """A file all of whose sectors fail, on ``loop``, where they begin at ``at``."""

    folder: Path
    loop: Path
    path: Path
    at: int

    def read(self, numbers: Iterable[int] = range(SECTORS)) -> int:
        """Read sectors, of which none can be read; say how many there were."""
        count = 0
        file = os.open(self.path, os.O_RDONLY | os.O_DIRECT)
        try:
            with mmap.mmap(-1, SECTOR) as buffer:
                for number in numbers:
                    with pytest.raises(OSError, match="Input/output error"):
                        os.preadv(file, [buffer], number * SECTOR)
                    count += 1
        finally:
            os.close(file)
        return count

    def journaled(self, source: str = "%", *, killed: bool = False) -> set[int]:
        """Return the sectors in the journal, or those that one source reported.

        Each must be one failure with one finding, which names the place in the file, and one report
        of each source that saw it. Where events were lost, or a killed daemon left a message behind
        without its tracepoint, requests are read again, and those reads are reported too.
        """
        query = """
            SELECT f.start, f.length, o.kind, o.file_offset, o.inode,
                   (SELECT count(*) FROM findings WHERE failure = f.id),
                   (SELECT count(*) FROM owners WHERE finding = i.id),
                   (SELECT count(*) FROM reports WHERE failure = f.id),
                   (SELECT count(DISTINCT source) FROM reports WHERE failure = f.id), i.complete
              FROM failures f JOIN findings i ON i.failure = f.id JOIN owners o ON o.finding = i.id
             WHERE f.device = ?
               AND EXISTS (SELECT * FROM reports WHERE failure = f.id AND source LIKE ?)
        """
        with closing(sqlite3.connect(self.folder / "journal.sqlite")) as journal:
            rows = journal.execute(query, (self.loop.name, source)).fetchall()
        inode = self.path.stat().st_ino
        # A message without its tracepoint names no length: the request is read again, or in doubt.
        requests = [row for row in rows if row[1] > SECTOR]
        end = self.at + SECTORS * SECTOR
        assert all(self.at <= row[0] and row[0] + row[1] <= end for row in requests if row[-1])
        rows = [row for row in rows if row[1] == SECTOR]
        for start, *rest, reports, sources, _ in rows:
            assert rest == [SECTOR, "file", start - self.at, inode, 1, 1]
            assert reports == sources or (reports > sources and (killed or self.lost()))
        numbers = [(start - self.at) // SECTOR for start, *_ in rows]
        assert len(set(numbers)) == len(numbers)
        assert set(numbers) <= set(range(SECTORS))
        suspected = {
            (start - self.at) // SECTOR + number
            for start, length, *_ in requests
            for number in range(length // SECTOR)
        }
        return set(numbers) | suspected & set(range(SECTORS))

    def lost(self) -> int:
        """Return the number of lost events of the tracepoint in the daemon's log."""
        log = (self.folder / "log").read_text()
        found = re.findall(r"event=events-lost source=tracepoint .*?count=(\d+)", log)
        return sum(map(int, found))


@pytest.fixture
def burst(tmp_path: Path) -> Iterator[Burst]:
    need_loop_mounts()
    image = make_image(tmp_path / "disk", Geometry("burst", size=64 * MIB, parent=False))
    from_now_on(tmp_path)
    with failing_disk(image, tmp_path / "at") as (served, loop, root):
        path = root / "hit"
        path.write_bytes(os.urandom(SECTORS * SECTOR))
        os.sync()
        at = place_of(root, path, 0)
        last = (SECTORS * SECTOR - 1) // BLOCK
        assert place_of(root, path, last) == at + last * BLOCK
        served.add(ByteRange(at, SECTORS * SECTOR))
        yield Burst(tmp_path, loop, path, at)


def settle(daemon: Daemon) -> dict[str, int]:
    """Wait until all is dealt with; give the most memory of the daemon's processes until then."""
    peaks = {"collector": 0, "worker": 0, "asking": 0}

    def dealt_with() -> bool:
        status = daemon.status()
        peaks["collector"] = peak_memory(daemon.process.pid)
        if status["worker"]:
            # It may have ended since it was named.
            with suppress(FileNotFoundError, ProcessLookupError):
                worker = status["worker"]
                peaks["worker"] = max(peaks["worker"], peak_memory(worker))
                asking = Path(f"/proc/{worker}/task/{worker}/children").read_text().split()
                peaks["asking"] = max([peaks["asking"], *map(peak_memory, map(int, asking))])
        return daemon.idle() and bool(status["counts"]["unhealed"])

    until(dealt_with, 120)
    return peaks


def test_ten_thousand_failures_at_once(burst: Burst) -> None:
    with watching(burst.folder) as daemon:
        burst.read()
        peaks = settle(daemon)
        status = daemon.status()
        daemon.stop()
    found = burst.journaled()
    assert SECTORS - len(found) <= burst.lost()
    assert status["counts"]["failures"][burst.loop.name] == len(found)
    assert peaks["collector"] < MOST_COLLECTOR
    assert 0 < peaks["worker"] < MOST_WORKER
    assert peaks["asking"] < MOST_WORKER


def test_dropped_events_are_reported_and_found_by_reading_again(burst: Burst) -> None:
    # The daemon does not get to run, as on a machine that has more urgent things to do.
    with watching(burst.folder) as daemon:
        daemon.process.send_signal(signal.SIGSTOP)
        burst.read()
        daemon.process.send_signal(signal.SIGCONT)
        settle(daemon)
        missing = set(range(SECTORS)) - burst.journaled()
        # The buffer of one processor has some four thousand; the log saw one or the other, and what
        # the daemon reads again has the tracepoint's events after all.
        assert burst.lost()
        assert SECTORS - len(burst.journaled("tracepoint")) <= burst.lost()
        assert len(missing) <= burst.lost()
        burst.read(sorted(missing))
        until(lambda: len(burst.journaled()) == SECTORS)
        daemon.stop()


def test_killed_again_and_again_in_the_middle(burst: Burst) -> None:
    kills = 0
    with ThreadPoolExecutor(1) as pool:
        reading: Future[int] | None = None
        while reading is None or not reading.done():
            with watching(burst.folder) as daemon:
                # Only now is there a trace instance; it outlives every daemon that is killed.
                reading = reading or pool.submit(burst.read)
                time.sleep(0.1 + 0.1 * (kills % 4))
                daemon.kill()
                kills += 1
        assert reading.result() == SECTORS
    with watching(burst.folder) as daemon:
        settle(daemon)
        daemon.stop()
    assert kills > 2
    # Who is killed as it tells of a loss tells of it again.
    assert SECTORS - len(burst.journaled("tracepoint", killed=True)) <= burst.lost()
