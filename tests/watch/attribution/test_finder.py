"""Locations of failures: requests that span files, and disks that lost their names.

The filesystem, the kernel and the failing disk are real; reports are made by hand.
"""

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.scenarios.test_emulated_device import BLOCK, place_of
from tests.support.emulated_device import Emulated
from tests.support.failing_disk import failing_disk
from tests.support.mounts import loop_device
from tests.support.tools import need_loop_mounts
from tests.support.xfs_images import MIB, Geometry, make_image

from whoseblock.journal import Filter, History, open_journal
from whoseblock.ranges import ByteRange
from whoseblock.stack.kernel.host import Host
from whoseblock.watch.policy.rules import Policy, Rule
from whoseblock.watch.processor import Processor, Setup
from whoseblock.watch.store.reports import FailedRange, as_past
from whoseblock.watch.store.state import StateFolder

REQUEST = 16 * BLOCK


class Disk:
    """A failing disk with two files, one beside the other, and a processor with a policy."""

    def __init__(self, folder: Path, served: Emulated, loop: Path, root: Path) -> None:
        self.folder, self.served, self.loop, self.root = folder, served, loop, root
        self.first, self.second = root / "first", root / "second"
        for path in (self.first, self.second):
            # Both are allocated before either is written, so neither is preallocated more.
            file = os.open(path, os.O_RDWR | os.O_CREAT)
            os.posix_fallocate(file, 0, REQUEST)
            os.pwrite(file, os.urandom(REQUEST), 0)
            os.fsync(file)
            os.close(file)
        self.at = place_of(root, self.second, 0)
        assert place_of(root, self.first, 15) == self.at - BLOCK
        #: A request of the last half of one and the first half of the other.
        self.start = self.at - REQUEST // 2

    def process(self, *reports: FailedRange) -> list[History]:
        rules = (Rule("tell", 1, owner=("file",), exec=("/bin/true",)),)
        journal = str(self.folder / "journal.sqlite")
        with StateFolder(self.folder / "state") as state:
            with Processor(Setup(state, Policy(rules), journal)) as processor:
                processor.process([reports])
            with open_journal(journal, write=False) as opened:
                return list(opened.histories(Filter()))

    def report(self, key: str, start: int, length: int = REQUEST) -> FailedRange:
        return FailedRange(
            source="tracepoint",
            at=time.time(),
            key=key,
            device=self.loop.name,
            start=start,
            length=512,
            disk=Host().read_disk_number(self.loop.name),
            detail={"request": length, "operation": "R", "error": "EIO"},
        )


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    need_loop_mounts()
    image = make_image(tmp_path / "disk", Geometry("request", size=32 * MIB, parent=False))
    with failing_disk(image, tmp_path / "at") as (served, loop, root):
        yield Disk(tmp_path, served, loop, root)


def paths(history: History, finding: int = -1) -> set[str]:
    rows = history.findings[finding].answer["owners"]
    return {path for row in rows for path in row.get("paths", ())}


def test_a_request_that_spans_two_files(disk: Disk) -> None:
    # Nothing can be found by reading: any of them may be hit, and no policy acts.
    (whole,) = disk.process(disk.report("1", disk.start))
    assert whole.failure.range == ByteRange(disk.start, REQUEST)
    assert paths(whole) == {"/first", "/second"}
    assert not whole.findings[0].complete
    assert whole.findings[0].notes[0].startswith("may be hit: a request of 65536 bytes failed")
    assert not whole.plans
    # The second file fails, and the request has the first one before it.
    (disk.folder / "state" / "examined.json").unlink()
    disk.served.add(ByteRange(disk.at, BLOCK))
    _, hit = disk.process(disk.report("2", disk.start))
    assert hit.failure.range == ByteRange(disk.at, BLOCK)
    assert paths(hit) == {"/second"}
    assert hit.findings[0].complete, hit.findings[0].notes
    assert len(hit.plans) == 1
    # What the kernel reported of our own reads is nothing new, and leads to no reads.
    before = disk.served.statistics()["reads_failed"]
    histories = disk.process(disk.report("3", disk.start), disk.report("4", disk.at, 4 * BLOCK))
    assert [len(one.findings) for one in histories] == [1, 1]
    assert disk.served.statistics()["reads_failed"] == before


def test_failures_of_the_past_are_history(disk: Disk) -> None:
    old = as_past(disk.report("old", disk.at, 512), "before the daemon watched")
    (history,) = disk.process(old)
    assert paths(history) == {"/second"}
    assert not history.findings[0].complete
    assert history.findings[0].notes[0].startswith("history: it failed at ")
    assert not history.plans
    # It fails again, now that it is watched.
    (history,) = disk.process(disk.report("new", disk.at, 512))
    assert [one.complete for one in history.findings] == [False, True]
    assert len(history.plans) == 1


def test_another_disk_has_the_name(disk: Disk) -> None:
    report = disk.report("gone", disk.at, 512)
    number = report.disk
    with ExitStack() as undo:
        # The name of the failed disk belongs to another one when the report is processed.
        other = make_image(disk.folder / "other", Geometry("other", size=32 * MIB))
        name = Path(undo.enter_context(loop_device(other))).name
        moved = FailedRange(
            source="kmsg",
            at=report.at,
            key="gone",
            device=name,
            start=disk.at,
            length=512,
            disk=number,
        )
        (history,) = disk.process(moved)
    assert history.failure.device == f"{name}#{number}"
    assert history.failure.identity == ""
    assert [row["kind"] for row in history.findings[0].answer["owners"]] == ["unknown"]
    assert not history.plans


def test_processes_are_searched_by_the_next_worker(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with disk.second.open("rb"):
        with monkeypatch.context() as patch:
            patch.setattr(Processor, "_search_users", killed)
            with pytest.raises(KeyboardInterrupt):
                disk.process(disk.report("1", disk.at, 512))
        (history,) = disk.process()
        (row,) = history.findings[-1].answer["owners"]
        assert [one["pid"] for one in row["processes"]] == [os.getpid()]
        assert len(history.plans) == 1
        (again,) = disk.process()
    assert (len(again.findings), len(again.plans)) == (len(history.findings), 1)
