"""Failing sectors of a request: bisected within limits, and not again and again."""

import errno
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from whoseblock.ranges import ByteRange
from whoseblock.stack.kernel.host import Host
from whoseblock.watch.attribution.requests import (
    FailedRequests,
    SectorLimits,
    find_failing_sectors,
)
from whoseblock.watch.store.reports import FailedRange
from whoseblock.watch.store.state import StateFolder

BLOCK, REQUEST = 4096, 64 << 10


def device(*bad: int) -> Callable[[int, int], None]:
    def read(start: int, length: int) -> None:
        if any(start < at + 512 and at < start + length for at in bad):
            raise OSError(errno.EIO, "Input/output error")

    return read


def test_failing_sectors_are_found_by_halving() -> None:
    count = 0

    def read(start: int, length: int) -> None:
        nonlocal count
        count += 1
        device(5 * BLOCK, 6 * BLOCK)(start, length)

    found = find_failing_sectors(read, 0, REQUEST, BLOCK)
    assert found == [ByteRange(5 * BLOCK, 2 * BLOCK)]
    assert count < 16
    assert find_failing_sectors(device(), 0, REQUEST, 512) == []
    assert find_failing_sectors(device(512), 512, 1024, BLOCK) == [ByteRange(512, 1024)]


def test_the_search_is_bounded() -> None:
    bad = device(*range(0, REQUEST, 512))
    assert find_failing_sectors(bad, 0, REQUEST, 512, SectorLimits(reads=10)) is None
    clock = iter(range(0, 1000, 10)).__next__
    assert find_failing_sectors(bad, 0, REQUEST, 512, SectorLimits(seconds=5), clock) is None
    with pytest.raises(PermissionError):
        find_failing_sectors(_refused, 0, REQUEST, 512)


def _refused(_start: int, _length: int) -> None:
    raise PermissionError


class Requests:
    """Requests of a disk, and how often it was read."""

    def __init__(self, state: StateFolder, root: Path) -> None:
        queue = root / "sys/class/block/sda/queue"
        queue.mkdir(parents=True, exist_ok=True)
        (queue / "max_sectors_kb").write_text("128\n")
        (queue / "max_segment_size").write_text("4096\n")
        (queue.parent / "size").write_text("65536\n")
        self.reads: list[ByteRange] = []
        self.answer: list[ByteRange] | None = []
        self.requests = FailedRequests(state, Host(root), self._read)

    def _read(self, _device: str, where: ByteRange) -> list[ByteRange] | None:
        self.reads.append(where)
        return self.answer

    def resolve(self, start: int, at: float = 0.0, **detail: Any) -> tuple[list[ByteRange], str]:  # noqa: ANN401 - JSON
        report = FailedRange(
            source="s",
            at=at or time.time(),
            key="k",
            device="sda",
            start=start,
            length=512,
            detail=detail,
        )
        self.requests.note(report)
        return self.requests.resolve(report)


def test_a_request_is_read_once(tmp_path: Path) -> None:
    with StateFolder(tmp_path / "state") as state:
        one = Requests(state, tmp_path)
        one.answer = [ByteRange(8 * BLOCK, BLOCK)]
        assert one.resolve(0, request=REQUEST, operation="RS") == (one.answer, "")
        # What our own reads have the kernel report is known.
        assert one.resolve(8 * BLOCK, request=BLOCK * 2) == (one.answer, "")
        assert one.resolve(0, request=REQUEST) == (one.answer, "")
        assert one.reads == [ByteRange(0, REQUEST)]
        # The next worker knows it, too.
        again = Requests(state, tmp_path)
        assert again.resolve(0, request=REQUEST) == (one.answer, "")
        assert not again.reads
        # What fails later elsewhere in it is something new, within limits.
        for _ in range(9):
            again.answer = []
            assert again.resolve(0, at=time.time() + 60, request=4 * BLOCK)[0] == [
                ByteRange(0, 4 * BLOCK)
            ]
        assert len(again.reads) <= 2


def test_what_cannot_be_determined(tmp_path: Path) -> None:
    with StateFolder(tmp_path / "state") as state:
        one = Requests(state, tmp_path)
        whole = [ByteRange(0, REQUEST)]
        found, why = one.resolve(0, request=REQUEST)
        assert (found, why) == (
            whole,
            "a request of 65536 bytes failed, and all of its sectors could be read later",
        )
        one.answer = None
        found, why = one.resolve(REQUEST, request=REQUEST)
        assert "could not be determined" in why
        found, why = one.resolve(0, request=REQUEST, operation="WS")
        assert found == whole
        assert "not written" in why
        # The log has no length: the most that the disk takes, and that its segments hold.
        reads = len(one.reads)
        message = "I/O error, dev sda, sector 8 op 0x0:(READ) flags 0x0 phys_seg 3 prio class 2"
        found, why = one.resolve(1 << 20, message=message)
        assert found == [ByteRange(1 << 20, 3 * BLOCK)]
        assert why.startswith("a request of up to 12288 bytes failed")
        assert len(one.reads) == reads + 1
        # Unless the tracepoint had it.
        assert one.resolve(2 << 20, request=512) == ([ByteRange(2 << 20, 512)], "")
        assert one.resolve(2 << 20, message=message) == ([ByteRange(2 << 20, 512)], "")


def test_a_request_within_a_block_is_not_read(tmp_path: Path) -> None:
    with StateFolder(tmp_path / "state") as state:
        one = Requests(state, tmp_path)
        for detail in ({}, {"request": 512}, {"request": BLOCK}):
            assert one.resolve(BLOCK, **detail) == ([ByteRange(BLOCK, 512)], "")
        assert not one.reads
