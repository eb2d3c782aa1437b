"""A filesystem can be unmounted as soon as its failures are dealt with."""

import os
import subprocess
from pathlib import Path

import pytest
from tests.support.mounts import own_mount_namespace
from tests.support.tools import need_root, run
from tests.support.watch_daemon import until
from tests.support.xfs_images import MIB, Geometry, make_image
from tests.watch.attribution.test_device_probe import Machine, failed, kinds, own_loop

from whoseblock.fs.base import Answer
from whoseblock.watch.attribution.locations import FailureLocation
from whoseblock.watch.processor import Processor
from whoseblock.watch.statistics import Statistics


def test_nothing_stays_busy_while_another_disk_fails(tmp_path: Path) -> None:
    need_root()
    own_mount_namespace()
    image = make_image(tmp_path / "disk", Geometry("busy", size=64 * MIB, parent=True))
    machine = Machine(tmp_path)
    at = tmp_path / "at"
    at.mkdir()

    def unmounts(processor: Processor) -> Statistics:
        processor.process([[failed(attach.name, MIB)]])
        processor.process([[failed("sdzz")]])
        # The worker and its probes live on: more may fail.
        assert processor._probe._children
        done = until(lambda: unmounted(at), 1.0)
        # Its device may be used by itself, too.
        os.close(os.open(f"/dev/{attach.name}", os.O_RDONLY | os.O_EXCL))
        assert done
        return processor.process([[failed(attach.name, 2 * MIB)]])

    with own_loop(image) as attach:
        attach()
        run(["mount", f"/dev/{attach.name}", at])
        try:
            machine.do(unmounts)
        finally:
            unmounted(at)
    assert [kinds(one) for one in machine.histories()] == [[["free"]], [["unknown"]], [["free"]]]


@pytest.mark.parametrize("again", [False, True], ids=["new", "looked up again"])
def test_nothing_stays_busy_while_another_disk_is_queried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, again: bool
) -> None:
    need_root()
    own_mount_namespace()
    image = make_image(tmp_path / "disk", Geometry("busy", size=64 * MIB, parent=True))
    machine = Machine(tmp_path)
    machine.retry_delays_s = (0.0,)
    at = tmp_path / "at"
    at.mkdir()
    done = []

    def unmounts_first(processor: Processor) -> Statistics:
        probe = processor._probe
        locate = probe.locate

        def query_the_other(device: str, start: int, length: int) -> list[FailureLocation]:
            places = locate(device, start, length)
            if device == "sdzz":
                done.append(until(lambda: unmounted(at), 1.0))
            return places

        monkeypatch.setattr(probe, "locate", query_the_other)
        if again:
            return processor.retry_unknown()
        # In one batch: each device is dealt with before the next.
        reports = [failed(attach.name, MIB), failed("sdzz"), failed(attach.name, 2 * MIB)]
        return processor.process([reports])

    with own_loop(image) as attach:
        if again:
            machine.process(failed(attach.name, MIB), failed("sdzz"))
        attach()
        run(["mount", f"/dev/{attach.name}", at])
        try:
            machine.do(unmounts_first)
        finally:
            unmounted(at)
    assert done == [True]
    found = {(one.failure.device, *map(tuple, kinds(one))) for one in machine.histories()}
    looked_up = (("unknown",), ("free",)) if again else (("free",),)
    assert (attach.name, *looked_up) in found


def test_nothing_stays_busy_while_the_journal_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_root()
    own_mount_namespace()
    image = make_image(tmp_path / "disk", Geometry("busy", size=64 * MIB, parent=True))
    machine = Machine(tmp_path)
    at = tmp_path / "at"
    at.mkdir()
    done = []

    def unmounts_last(processor: Processor) -> Statistics:
        run_of_worker = processor._run
        record_finding = run_of_worker.record_finding

        def wait_and_record(failure: int, answer: Answer) -> int:
            # As while another process has the journal locked.
            done.append(until(lambda: unmounted(at), 1.0))
            return record_finding(failure, answer)

        monkeypatch.setattr(run_of_worker, "record_finding", wait_and_record)
        return processor.process([[failed(attach.name, MIB)]])

    with own_loop(image) as attach:
        attach()
        run(["mount", f"/dev/{attach.name}", at])
        try:
            machine.do(unmounts_last)
        finally:
            unmounted(at)
    assert done == [True]
    assert [kinds(one) for one in machine.histories()] == [[["free"]]]


def unmounted(point: Path) -> bool:
    return subprocess.run(["umount", point], capture_output=True, check=False).returncode == 0
