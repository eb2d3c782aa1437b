"""A device that does not answer delays only its own probe, and is probed again later."""

import contextlib
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tests.support.emulated_device import emulated, need_fuse
from tests.support.mounts import mounted
from tests.support.tools import need_root, run
from tests.support.watch_daemon import Daemon, histories, until, watching
from tests.support.xfs_images import MIB, Geometry, make_image

from whoseblock.journal import History, State, open_journal
from whoseblock.process_stat import read_start_time
from whoseblock.ranges import ByteRange
from whoseblock.stack.kernel.host import Host
from whoseblock.watch.attribution import device_probe
from whoseblock.watch.attribution.device_probe import ProbeLimits
from whoseblock.watch.attribution.retry_queue import RETRY_DELAYS_S
from whoseblock.watch.children import STANDARD, fork, signs_of_life
from whoseblock.watch.policy.rules import Policy
from whoseblock.watch.processor import Processor, Setup
from whoseblock.watch.statistics import Statistics
from whoseblock.watch.store.reports import BadBlockList, FailedFileRange, FailedRange, Report
from whoseblock.watch.store.spool import Spool
from whoseblock.watch.store.state import StateFolder
from whoseblock.watch.worker import process_spool

_GETVERSION = 0x80087601  # linux/fs.h
_LOOP_CTL_ADD, _LOOP_CTL_REMOVE = 0x4C80, 0x4C81  # linux/loop.h


def failed(device: str, start: int = 4096, key: str = "") -> FailedRange:
    name = key or f"{device}:{start}"
    return FailedRange(
        source="kmsg", at=time.time(), key=name, device=device, start=start, length=512
    )


class Machine:
    """A journal and a state folder, of a machine whose /sys may be made up."""

    def __init__(self, folder: Path, root: Path | None = None) -> None:
        self.folder = folder
        self.probe_limits = ProbeLimits()
        self.retry_delays_s = RETRY_DELAYS_S
        self.root = root or Path("/")
        self.journal = folder / "journal.sqlite"

    def setup(self, state: StateFolder) -> Setup:
        return Setup(
            state,
            Policy(),
            str(self.journal),
            root=str(self.root),
            since=time.time(),
            probe_limits=self.probe_limits,
            retry_delays_s=self.retry_delays_s,
        )

    def do(self, work: Callable[[Processor], Statistics]) -> Statistics:
        with (
            StateFolder(self.folder / "state") as state,
            Processor(self.setup(state)) as processor,
        ):
            return work(processor)

    def process(self, *reports: Report) -> Statistics:
        return self.do(lambda processor: processor.process([reports]))

    def ask_again(self) -> Statistics:
        return self.do(lambda processor: processor.retry_unknown())

    def histories(self) -> list[History]:
        return histories(self.journal)

    def add_disk(self, name: str, wwid: str) -> None:
        """Put a disk of 1 MiB into its /sys."""
        disk = self.root / "sys/block" / name
        (disk / "device").mkdir(parents=True)
        (disk / "size").write_text("2048\n")
        (disk / "device/wwid").write_text(f"{wwid}\n")
        (self.root / "sys/class/block" / name).symlink_to(disk)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    (tmp_path / "sys/class/block").mkdir(parents=True)
    (tmp_path / "proc").mkdir()
    return Machine(tmp_path, tmp_path)


def notes(history: History) -> list[list[str]]:
    return [finding.answer["notes"] for finding in history.findings]


def kinds(history: History) -> list[list[str]]:
    return [[row["kind"] for row in one.answer["owners"]] for one in history.findings]


def test_an_unresponsive_disk(tmp_path: Path) -> None:
    need_root()
    need_fuse()
    image = make_image(tmp_path / "disk", Geometry("silent", size=64 * MIB, parent=True))
    machine = Machine(tmp_path)
    machine.probe_limits = ProbeLimits(stall_s=4.0, cooldown_s=60.0)
    machine.retry_delays_s = (0.0,)
    with emulated(image, tmp_path / "at") as served, served.loop() as loop:
        with served.standing_still():
            began = time.monotonic()
            machine.process(failed(loop.name, MIB), failed(loop.name, 2 * MIB), failed("sdzz"))
            # The second is not asked: one who waits for the disk is enough.
            assert time.monotonic() - began < 10
            first, second, other = machine.histories()
            assert [one.failure.device for one in (first, second)] == [loop.name] * 2
            assert kinds(first) == kinds(second) == [["unknown"]]
            assert notes(first)[0][0].startswith(f"{loop.name} has not answered for ")
            # Whether the first can be killed depends on what it waits for.
            assert re.match(rf"{loop.name} (does|did) not answer", notes(second)[0][0])
            assert notes(other) == [["no block device 'sdzz'"]]
            # A later worker starts no second probe for it, and does not journal it again.
            machine.ask_again()
            assert [kinds(one) for one in machine.histories()] == [[["unknown"]]] * 3
        until(lambda: not_stuck(machine))
        machine.probe_limits = ProbeLimits(stall_s=4.0, cooldown_s=0.0)
        machine.ask_again()
    first, second, other = machine.histories()[:3]
    by_number = {one.failure.id: one for one in machine.histories()}
    for history, start in ((first, MIB), (second, 2 * MIB)):
        # The filesystem's identity is known only now, so that it is another entry.
        assert history.failure.closed_because is not None
        number = int(history.failure.closed_because.removeprefix("it is failure "))
        found = by_number[number]
        assert found.failure.identity.startswith("xfs ")
        assert found.failure.range == ByteRange(start, 512)
        assert found.reports[0].detail == history.reports[0].detail
        assert kinds(found) == [["free"]]
    assert other.failure.closed is None


def not_stuck(machine: Machine) -> bool:
    with StateFolder(machine.folder / "state") as state:
        silent = (
            state.load("silent.json", device_probe.AbandonedProbes)
            or device_probe.AbandonedProbes()
        )
    return all(read_start_time(one.pid) is None for one in silent.devices.values())


# ------------------------------------------------------------------ unknown, and asked again


def test_a_device_that_comes_later(tmp_path: Path) -> None:
    need_root()
    image = make_image(tmp_path / "disk", Geometry("late", size=64 * MIB, parent=True))
    machine = Machine(tmp_path)
    machine.retry_delays_s = (0.0,)
    with own_loop(image) as attach:
        machine.process(failed(attach.name, MIB))
        assert [kinds(one) for one in machine.histories()] == [[["unknown"]]]
        attach()
        machine.ask_again()
    (history,) = machine.histories()
    assert kinds(history) == [["unknown"], ["free"]]
    assert history.findings[1].answer["complete"]


def test_a_range_that_fails_again_at_once(tmp_path: Path) -> None:
    need_root()
    image = make_image(tmp_path / "disk", Geometry("again", size=64 * MIB, parent=True))
    machine = Machine(tmp_path)

    def fails_again(processor: Processor) -> Statistics:
        processor.process([[failed(attach.name, MIB)]])
        with open_journal(str(machine.journal)) as journal, journal.begin_run([], "0") as run:
            run.close_failure(1, "dealt with")
        return processor.process([[failed(attach.name, MIB, "again")]])

    with own_loop(image) as attach:
        attach()
        machine.do(fails_again)
    first, second = machine.histories()
    assert first.failure.closed is not None
    assert second.failure.closed is None
    # The place was known before, and is not now.
    assert kinds(second) == [["free"]]
    assert second.findings[0].complete


def test_reports_about_a_device_that_was_lost(tmp_path: Path) -> None:
    need_root()
    image = make_image(tmp_path / "disk", Geometry("late", size=64 * MIB, parent=True))
    machine = Machine(tmp_path)
    with own_loop(image) as attach:
        machine.process(failed(attach.name, MIB))
        machine.ask_again()
        attach()
        # It is not time yet, unless there is news of it.
        machine.ask_again()
        assert [kinds(one) for one in machine.histories()] == [[["unknown"]]]
        machine.process(failed(attach.name, MIB, "again"))
        machine.ask_again()
    (history,) = machine.histories()
    assert len(history.reports) == 2
    assert kinds(history) == [["unknown"], ["free"]]


def test_unknown_owners_are_looked_up_under_load(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.retry_delays_s = (0.0,)
    machine.process(failed("sdb"))
    monkeypatch.setattr("whoseblock.watch.worker.BATCH", 1)
    seconds = iter(range(0, 1000, 35))
    with StateFolder(machine.folder / "state") as state:
        spool = Spool(state.path / "spool")
        for number in range(4):
            spool.put([failed("sdc", number * 512)])
        tries = []

        def more(*, busy: bool, search: int) -> bool:
            del busy, search
            queue = json.loads((state.path / "unanswered.json").read_bytes())["waiting"]
            tries.append(queue["1"]["tries"])
            return spool.has_more

        process_spool(
            spool,
            lambda: machine.setup(state),
            lambda _: None,
            more,
            clock=lambda: float(next(seconds)),
        )
    # After two of the four batches, and at the end.
    assert tries == [0, 1, 1, 2]


class Attach:
    """A loop device that is not there yet: ``name`` is what it is going to be called."""

    def __init__(self, image: Path) -> None:
        # Far from the numbers that the kernel allocates.
        self.number = 100_000 + os.getpid() % 100_000
        self.name = f"loop{self.number}"
        self._image = image

    def __call__(self) -> None:
        with Path("/dev/loop-control").open("rb") as control:
            fcntl.ioctl(control, _LOOP_CTL_ADD, self.number)
        run(["losetup", f"/dev/{self.name}", self._image])


@contextlib.contextmanager
def own_loop(image: Path) -> Iterator[Attach]:
    attach = Attach(image)
    try:
        yield attach
    finally:
        with contextlib.suppress(subprocess.CalledProcessError, OSError):
            run(["losetup", "-d", f"/dev/{attach.name}"])
            with Path("/dev/loop-control").open("rb") as control:
                fcntl.ioctl(control, _LOOP_CTL_REMOVE, attach.number)


def test_a_list_of_another_device_of_that_name(machine: Machine) -> None:
    def listed(number: int) -> BadBlockList:
        ranges = (ByteRange(4096, 4096),)
        name = f"{number}:0"
        return BadBlockList(source="sysfs", at=time.time(), key=name, device="pmem0", ranges=ranges)

    machine.add_disk("pmem0", "naa.first")
    machine.process(listed(1))
    machine.process(listed(2))
    assert len(machine.histories()) == 1
    (machine.root / "sys/block/pmem0/device/wwid").write_text("naa.second\n")
    machine.process(listed(3))
    assert [(one.failure.identity, one.failure.closed is None) for one in machine.histories()] == [
        ("naa.first", True),
        ("naa.second", True),
    ]


def test_retries_become_less_frequent(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    machine.process(failed("sdzz"))
    asked = []
    for _ in range(8 * 1440):
        now += 60
        due = machine.folder / "state/unanswered.json"
        before = due.read_bytes()
        if now >= json.loads(before)["waiting"]["1"]["due"]:
            machine.ask_again()
            asked.append(now)
    waits = [round(later - earlier) for earlier, later in pairwise(asked)]
    assert waits[:4] == [600, 3600, 21600, 86400]
    assert set(waits[4:]) == {86400}
    assert len(machine.histories()[0].findings) == 1


# ------------------------------------------------------------------ what cannot be dealt with


def test_a_damaged_file_of_the_spool(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    machine = Machine(tmp_path)
    with StateFolder(tmp_path / "state") as state:
        spool = Spool(state.path / "spool")
        spool.put([failed("sdzz", 0)])
        # A folder stands for a file whose own sector is bad: it cannot be read.
        (damaged,) = (state.path / "spool").glob("*.reports")
        damaged.unlink()
        damaged.mkdir()
        spool.put([failed("sdzz", 4096)])
        told = Statistics()
        process_spool(spool, lambda: machine.setup(state), told.add, lambda **_: False)
        assert not spool.has_more
        assert [file.name for file in (state.path / "spool/aside").iterdir()] == [damaged.name]
    assert [one.failure.start for one in machine.histories()] == [4096]
    assert told.lost == {"spool": 1}
    assert "event=events-lost" in capfd.readouterr().err


def test_a_report_that_causes_an_unexpected_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    real = Processor._failures_of

    def fragile(self: Processor, report: Report) -> Any:  # noqa: ANN401 - as the real one
        if isinstance(report, FailedRange) and report.key.endswith("bad"):
            raise ZeroDivisionError
        return real(self, report)

    monkeypatch.setattr(Processor, "_failures_of", fragile)
    machine = Machine(tmp_path)
    with StateFolder(tmp_path / "state") as state:
        spool = Spool(state.path / "spool")
        for number, name in enumerate(("one", "bad", "two")):
            spool.put([failed("sdzz", number * 4096, name)])
        told = Statistics()
        process_spool(spool, lambda: machine.setup(state), told.add, lambda **_: False)
        assert not spool.has_more
        assert len(list((state.path / "spool/aside").iterdir())) == 1
    assert [one.failure.start for one in machine.histories()] == [0, 8192]
    assert told.lost == {"spool": 1}
    assert "event=report-set-aside" in capfd.readouterr().err


def test_a_worker_that_fails_is_started_ever_more_rarely(tmp_path: Path, machine: Machine) -> None:
    with StateFolder(tmp_path / "state") as state:
        Spool(state.path / "spool").put([failed("sdzz")])
    (tmp_path / "journal.sqlite").mkdir()
    with watching(tmp_path, "--root", machine.root) as daemon:
        until(lambda: daemon.log().count("again_in=15") or None, 60)
        waits = [line.partition("again_in=")[2] for line in daemon.log().splitlines()]
        assert [one.split()[0] for one in waits if one][:3] == ["1.000", "5.000", "15.000"]
        (tmp_path / "journal.sqlite").rmdir()
        daemon.stop()


def test_no_record_waits_for_a_program(tmp_path: Path, machine: Machine) -> None:
    for name in ("pmem0", "pmem1"):
        machine.add_disk(name, f"naa.{name}")
        (machine.root / "sys/block" / name / "badblocks").write_text("\n")
    policy = tmp_path / "policy.toml"
    policy.write_text(
        '[[rule]]\ndevice = "pmem0"\nexec = ["/bin/sleep", "1000"]\nexec-timeout = 900\n'
    )
    options = ("--root", machine.root, "--policy", policy, "--interval", "0.2")
    with watching(tmp_path, *options) as daemon:
        (machine.root / "sys/block/pmem0/badblocks").write_text("8 8\n")
        until(lambda: states(daemon) == [State.STARTED])
        (machine.root / "sys/block/pmem1/badblocks").write_text("8 8\n")
        until(lambda: len(daemon.histories()) == 2)
        assert daemon.status()["actor"]
        assert states(daemon) == [State.STARTED]
        daemon.kill()


def states(daemon: Daemon) -> list[State]:
    """Return the states of all steps."""
    plans = [plan for history in daemon.histories() for plan in history.plans]
    return [step.state for plan in plans for step in plan.steps]


def test_a_new_policy_applies_to_waiting_reports(tmp_path: Path, machine: Machine) -> None:
    machine.add_disk("pmem0", "naa.pmem0")
    (machine.root / "sys/block/pmem0/badblocks").write_text("8 8\n64 8\n")
    policy, ended = tmp_path / "policy.toml", tmp_path / "ended"
    wait = f"until [ -e {ended} ]; do sleep 0.1; done"
    policy.write_text(f'[[rule]]\nexec = ["/bin/sh", "-c", "{wait}"]\n')
    with watching(tmp_path, "--root", machine.root, "--policy", policy) as daemon:
        until(lambda: states(daemon) == [State.STARTED, State.PLANNED])
        policy.write_text("")
        daemon.process.send_signal(signal.SIGHUP)
        until(lambda: "event=policy-loaded" in daemon.log())
        ended.touch()
        until(lambda: states(daemon) == [State.VERIFIED, State.SKIPPED])
        daemon.stop()


# ------------------------------------------------------------------ who asks


def test_a_child_inherits_no_descriptors(tmp_path: Path) -> None:
    locked = tmp_path / "lock"
    with locked.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        ours, theirs = os.pipe()

        def body() -> int:
            names = " ".join(sorted(os.listdir("/proc/self/fd"), key=int))
            os.write(theirs, f"{Path('/proc/self/comm').read_text()}{names}".encode())
            return 7

        pid = fork("test", body, (*STANDARD, theirs), locked)
        file.close()
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        name, _, numbers = os.read(ours, 4096).decode().partition("\n")
        assert name == "watch-test"
        left = set(map(int, numbers.split()))
        # Two more: that of the badge, and that of the listing itself.
        assert {0, 1, 2, theirs} <= left
        assert len(left) == 6
        os.close(ours)
        os.close(theirs)


def test_signs_of_life() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", "input()\nwhile True: pass"], stdin=subprocess.PIPE
    ) as child:
        assert child.stdin is not None
        until(lambda: b"S" in Path(f"/proc/{child.pid}/stat").read_bytes().split()[2])
        before = signs_of_life(child.pid)
        child.stdin.write(b"\n")
        child.stdin.flush()
        until(lambda: signs_of_life(child.pid) != before)
        assert read_start_time(child.pid)
        child.kill()
        child.wait()
        assert read_start_time(child.pid) is None
        assert signs_of_life(child.pid) == (b"",)


def test_a_probe_that_dies(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_probe._DeviceSession, "locate", lambda *_: os._exit(9))
    machine.process(failed("sdzz"))
    (history,) = machine.histories()
    assert notes(history) == [["the probe of sdzz died"]]


def part_of(path: Path, *, generation: int | None = None) -> FailedFileRange:
    """Report that the second block of a file on a device failed."""
    status = path.stat()
    device = Host("/").find_device_by_number(status.st_dev)
    assert device is not None
    if generation is None:
        with path.open("rb") as file:
            generation = int.from_bytes(fcntl.ioctl(file, _GETVERSION, bytes(4)), sys.byteorder)
    return FailedFileRange(
        source="xfs-health",
        at=time.time(),
        key=f"{status.st_ino}:{generation}",
        device=device,
        place=str(path.parent),
        inode=status.st_ino,
        generation=generation,
        start=4096,
        length=4096,
    )


def test_a_failed_part_of_a_file_without_a_visible_path(tmp_path: Path) -> None:
    need_root()
    image = make_image(tmp_path / "disk", Geometry("files", size=64 * MIB, parent=True))
    machine = Machine(tmp_path)
    with mounted(image) as root:
        deleted, hidden = (Path(os.fsdecode(root)) / name for name in ("deleted", "sub/hidden"))
        hidden.parent.mkdir()
        for path in (deleted, hidden):
            path.write_bytes(bytes(8192))
        os.sync()
        reports = [part_of(deleted), part_of(hidden)]
        with deleted.open("rb"):
            deleted.unlink()
            run(["mount", "-t", "tmpfs", "tmpfs", hidden.parent])
            try:
                assert machine.process(*reports).ill == {}
            finally:
                run(["umount", hidden.parent])
    found = [history.findings[0].answer["owners"] for history in machine.histories()]
    assert [[(row["inode"], row["file_offset"]) for row in rows] for rows in found] == [
        [(one.inode, 4096)] for one in reports
    ]


def test_a_failed_part_of_a_file_that_is_gone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    need_root()
    image = make_image(tmp_path / "disk", Geometry("files", size=64 * MIB, parent=True))
    machine = Machine(tmp_path)
    with mounted(image) as root:
        path = Path(os.fsdecode(root)) / "file"
        path.write_bytes(bytes(8192))
        os.sync()
        whole = part_of(path)
        # Another file has its inode number, or had it.
        former = part_of(path, generation=whole.generation ^ 1)
        done = machine.process(whole, former)
    assert done.ill == {}
    assert [history.reports[0].detail["inode"] for history in machine.histories()] == [whole.inode]
    (told,) = re.findall(r"event=file-gone .*", capfd.readouterr().err)
    assert f"inode={whole.inode} start=4096 length=4096" in told


def test_retries_are_saved_together(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.retry_delays_s = (0.0,)
    machine.process(*(failed("sdzz", 4096 * number) for number in range(30)))
    saved: list[str] = []
    save = StateFolder.save

    def note(state: StateFolder, name: str, record: object, *, durable: bool = True) -> None:
        saved.append(name)
        save(state, name, record, durable=durable)

    monkeypatch.setattr(StateFolder, "save", note)
    machine.ask_again()
    # The queue may hold thousands.
    assert saved.count("unanswered.json") == 1
