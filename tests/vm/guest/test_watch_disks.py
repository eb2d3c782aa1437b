"""The daemon while an ordinary disk fails, below volumes."""

import os
import re

import pytest
from tests.vm.guest.asking import files_at, owners_at, way
from tests.vm.guest.disk import Disk, read_direct
from tests.vm.guest.files import make_shared
from tests.vm.guest.machine import KernelLog, Undo, run, wait_for, xfsprogs
from tests.vm.guest.pmem import PAGE
from tests.vm.guest.volumes import (
    OVER_ERRORS,
    OVER_PARTITION,
    break_under,
    over_errors,
    over_partition,
    with_realtime,
)
from tests.vm.guest.watching import Watch, answer_of

from whoseblock.journal import History
from whoseblock.ranges import ByteRange, merge

MIB = 1 << 20
#: Who tells of a request that failed.
REQUESTS = {"kmsg", "tracepoint"}


def told_by(entries: list[History]) -> set[str]:
    return {report.source for entry in entries for report in entry.reports}


def test_a_medium_error_through_a_partition_and_lvm(disk: Disk, undo: Undo) -> None:
    folder = over_partition(disk, undo)
    shared = make_shared(folder)
    at = shared.start + 5 * PAGE
    disk.fail(OVER_PARTITION + at)
    watch = Watch(undo)
    watch.start()

    with pytest.raises(RuntimeError, match="No data available"):
        read_direct(shared.second, 5 * PAGE)

    # The log and the tracepoint say where the request began, the filesystem what it wanted to read.
    wait_for(lambda: told_by(watch.entries()) >= {*REQUESTS, "xfs-health"}, 120)
    entries = watch.wait_for(2)
    assert {entry.failure.device for entry in entries} == {"vg-lv"}
    assert list(merge(entry.failure.range for entry in entries)) == [ByteRange(at, PAGE)]
    assert sum(entry.failure.length for entry in entries) == PAGE, "they do not overlap"
    for entry in entries:
        answer = answer_of(entry)
        assert answer["complete"], answer["notes"]
        assert files_at(answer) == shared.names == owners_at(folder, at)
    (first,) = (entry for entry in entries if told_by([entry]) >= REQUESTS)
    assert first.failure.range == ByteRange(at, 512)


def test_the_error_target_under_lvm(disk: Disk, undo: Undo, kernel_log: KernelLog) -> None:
    folder = over_errors(disk, undo)
    shared = make_shared(folder)
    at = shared.start + 5 * PAGE
    break_under(disk, OVER_ERRORS + at)
    watch = Watch(undo)
    watch.start()

    with pytest.raises(RuntimeError, match="Input/output error"):
        read_direct(shared.second, 5 * PAGE)

    # Only the filesystem reports this one.
    (entry,) = watch.wait_for(1, {"xfs-health"})
    assert "error, dev" not in kernel_log.text
    assert (entry.failure.device, entry.failure.range) == ("vg-lv", ByteRange(at, PAGE))
    answer = answer_of(entry)
    assert answer["complete"], answer["notes"]
    assert files_at(answer) == shared.names == owners_at(folder, at)
    assert way(answer)["vg-lv"] == at


def test_a_file_on_the_realtime_device(disk: Disk, undo: Undo) -> None:
    folder = with_realtime(disk, undo)
    file = folder / "file"
    file.write_bytes(os.urandom(4 * MIB))
    run(["sync", "-f", folder])
    # Of the realtime device, in sectors.
    mapped = run([xfsprogs("xfs_io"), "-c", "bmap", file]).decode()
    extent = re.search(r"0: \[0\.\.[0-9]+\]: ([0-9]+)\.\.", mapped)
    assert extent is not None, mapped
    at = int(extent[1]) * 512 + 5 * PAGE
    begin = int(run(["cat", f"/sys/class/block/{disk.name}2/start"])) * 512
    disk.fail(begin + at)
    watch = Watch(undo)
    watch.start()

    with pytest.raises(RuntimeError, match="No data available"):
        read_direct(file, 5 * PAGE)

    wait_for(lambda: told_by(watch.entries()) >= {*REQUESTS, "xfs-health"}, 300)
    entries = watch.wait_for(2)
    assert {entry.failure.device for entry in entries} == {f"{disk.name}2"}
    assert list(merge(entry.failure.range for entry in entries)) == [ByteRange(at, PAGE)]
    for entry in entries:
        answer = answer_of(entry)
        assert [row["kind"] for row in answer["owners"]] == ["unknown"]
        assert not answer["complete"]
