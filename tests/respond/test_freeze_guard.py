"""A frozen filesystem is thawed, whatever becomes of who froze it."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from tests.support.freezing_processes import Freezer, Waiter, freezing, state_of
from tests.support.killed_repairs import (
    BLOCK,
    Ground,
    check_not_frozen,
    control_groups,
    ground,
    guards_of,
    thaw,
    victim,
    wait_for_no_guard,
)
from tests.support.mounts import frozen as frozen_by_others
from tests.support.system_calls import fallocate
from tests.support.tools import Missing

from whoseblock.journal import State
from whoseblock.ranges import ByteRange
from whoseblock.respond.exceptions import NotNowError, UnguardedError
from whoseblock.respond.freezing import FreezeJournal, FreezeLimits, FreezeRecord, frozen


@pytest.fixture(scope="module")
def shared() -> Iterator[Ground]:
    with ground() as made:
        yield made


@pytest.fixture
def root(shared: Ground) -> Iterator[Path]:
    """Provide a filesystem, and thaw it if a failing test leaves it frozen."""
    yield shared.root
    thaw(shared.root)


@contextlib.contextmanager
def waiting(root: Path, freezer: Freezer) -> Iterator[Waiter]:
    """Start a process that waits for the thaw."""
    waiter = Waiter(root, freezer.pid)
    waiter.start()
    assert waiter.waits()
    yield waiter
    waiter.check_soon()


def check_over(root: Path, freezer: Freezer) -> None:
    wait_for_no_guard(freezer.pid)
    check_not_frozen(root)


def test_the_filesystem_is_frozen_until_the_block_ends(root: Path) -> None:
    with freezing(root) as freezer:
        assert freezer.line() == "frozen"
        with waiting(root, freezer) as waiter:
            freezer.go()
            waiter.check_soon()
            assert freezer.line() == "thawed"
        check_over(root, freezer)


def test_the_parent_is_killed(root: Path) -> None:
    with freezing(root) as freezer:
        assert freezer.line() == "frozen"
        with waiting(root, freezer):
            freezer.process.kill()
        check_over(root, freezer)


def test_the_parent_is_stopped_for_longer_than_the_limit(root: Path) -> None:
    with freezing(root, limit_s=1) as freezer:
        assert freezer.line() == "frozen"
        with waiting(root, freezer) as waiter:
            os.kill(freezer.pid, signal.SIGSTOP)
        # It is dead at the very moment at which others may write again.
        assert waiter.saw == "Z"
        assert freezer.process.wait() == -signal.SIGKILL
        check_over(root, freezer)


def test_a_slow_parent_does_nothing_after_the_thaw(root: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    block = f"""
with open({str(log)!r}, "a") as log:
    while True:
        print(time.monotonic(), file=log, flush=True)
"""
    with freezing(root, limit_s=1, block=block) as freezer:
        assert freezer.line() == "frozen"
        with waiting(root, freezer) as waiter:
            pass
        assert (waiter.saw, freezer.process.wait()) == ("Z", -signal.SIGKILL)
        stamps = [float(line) for line in log.read_text().splitlines(keepends=True) if "\n" in line]
        assert stamps[-1] - stamps[0] > 0.5
        assert stamps[-1] < waiter.done
        check_over(root, freezer)


def test_the_guard_is_killed(root: Path) -> None:
    with freezing(root) as freezer:
        assert freezer.line() == "frozen"
        with waiting(root, freezer) as waiter:
            os.kill(freezer.guard(), signal.SIGKILL)
            # It is not thawed: the block may still be written.
            assert waiter.waits()
            freezer.go()
        assert freezer.line().startswith(
            "UnguardedError the guard process of the frozen filesystem was"
        )
        check_over(root, freezer)


@pytest.fixture
def cgroup(request: pytest.FixtureRequest) -> Iterator[Path]:
    """Provide a control group, which is removed at the end."""
    groups = control_groups()
    if groups is None:
        raise Missing("no control groups can be made here (cgroup2)")
    group = groups / f"whoseblock-test-{os.getpid()}-{request.node.name}"
    group.mkdir()
    yield group
    deadline = time.monotonic() + 10
    while (group / "cgroup.procs").read_text("ascii"):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    group.rmdir()


def test_the_control_group_of_the_parent_is_killed(root: Path, cgroup: Path) -> None:
    with contextlib.ExitStack() as stack:
        (cgroup / "cgroup.procs").write_text("0", "ascii")
        try:
            freezer = stack.enter_context(freezing(root))
        finally:
            (cgroup.parent / "cgroup.procs").write_text("0", "ascii")
        assert freezer.line() == "frozen"
        assert (cgroup / "cgroup.procs").read_text("ascii").split() == [str(freezer.pid)]
        assert (Path("/proc") / str(freezer.guard()) / "cgroup").read_text("ascii") != (
            Path("/proc") / str(freezer.pid) / "cgroup"
        ).read_text("ascii")
        with waiting(root, freezer):
            (cgroup / "cgroup.kill").write_text("1", "ascii")
        check_over(root, freezer)
        assert not list(cgroup.parent.glob("whoseblock-guard-*"))


@contextlib.contextmanager
def left_frozen(root: Path, group: Path | None = None) -> Iterator[FreezeRecord]:
    """Freeze a filesystem, and kill the process and its guard; it must be thawed then.

    ``group`` is a control group, with which both are killed.
    """
    with freezing(root) as freezer, folder_of(root) as folder:
        assert freezer.line() == "frozen"
        waiter = Waiter(root, freezer.pid)
        waiter.start()
        record = FreezeRecord.of(folder, freezer.guard())
        if group is None:
            os.kill(record.pid, signal.SIGKILL)
            freezer.process.kill()
        else:
            for pid in record.pid, freezer.pid:
                (group / "cgroup.procs").write_text(str(pid), "ascii")
            (group / "cgroup.kill").write_text("1", "ascii")
        assert freezer.process.wait() == -signal.SIGKILL
        assert waiter.waits()
        yield record
        waiter.check_soon()


@contextlib.contextmanager
def folder_of(root: Path) -> Iterator[int]:
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    yield folder
    os.close(folder)


def thaws(folder: int, record: FreezeRecord) -> bool:
    """Return whether a run that finds a record in its journal thaws, and notes that."""
    notes: list[FreezeRecord | None] = []
    thawed = FreezeJournal(record, notes.append).thaw_left(folder)
    assert notes == [None] * thawed
    return thawed


def test_both_are_killed_and_the_next_run_thaws(root: Path) -> None:
    with folder_of(root) as folder, left_frozen(root) as record:
        assert thaws(folder, record)
    check_not_frozen(root)


def test_the_control_group_of_both_is_killed(root: Path, cgroup: Path) -> None:
    with folder_of(root) as folder, left_frozen(root, cgroup) as record:
        assert thaws(folder, record)
    check_not_frozen(root)


def test_only_what_a_dead_run_of_this_boot_froze_is_thawed(root: Path, shared: Ground) -> None:
    with folder_of(root) as folder, folder_of(shared.folder) as elsewhere:
        with left_frozen(root) as record:
            assert not thaws(folder, msgspec.structs.replace(record, boot="before"))
            assert not thaws(folder, msgspec.structs.replace(record, started=1))
            assert not thaws(elsewhere, record)
            # An administrator thaws it, and another program freezes it then.
            assert thaw(root)
        with frozen_by_others(os.fsencode(root)):
            assert not thaws(folder, record)
            # A guard that freezes too late, and is killed, waits for the thaw of the other one.
            notes: list[FreezeRecord | None] = []
            with pytest.raises(NotNowError), frozen(folder, note=notes.append):
                raise AssertionError
            late, end = notes
            assert (late is not None, end) == (True, None)
            assert late is None or not thaws(folder, late)


def test_resume_thaws_what_was_left_frozen(shared: Ground, root: Path, tmp_path: Path) -> None:
    place = unwritten(shared)
    words = zeroing(shared, place)
    resuming = ("respond", "--resume", "--journal", shared.journal)
    with victim(tmp_path / "runs") as program:
        shared.served.add(ByteRange(place, 512))
        at = 1 + program.run(*words).begun().index("freeze")
        for by_hand in (False, True):
            shared.served.add(ByteRange(place, 512))
            assert program.run(*words, at=at, after=True, guard=True, both=True).killed
            if by_hand:
                # What another program freezes then stays frozen.
                assert thaw(root)
                with frozen_by_others(os.fsencode(root)):
                    ran = program.run(*resuming)
                    assert (ran.code, "another process has frozen it" in ran.output) == (14, True)
                    assert shared.unfinished()
            ran = program.run(*resuming)
            assert ran.code == 0, ran.output
            assert not shared.unfinished()
            check_not_frozen(root)


def test_the_guard_is_stopped(root: Path) -> None:
    limits = FreezeLimits(guard_s=3)
    folder = os.open(root, os.O_RDONLY)
    begun = time.monotonic()
    with pytest.raises(UnguardedError, match="or stopped"), frozen(folder, limits):
        os.kill(guards_of(os.getpid())[0], signal.SIGSTOP)
    assert time.monotonic() - begun < 10
    os.close(folder)
    check_not_frozen(root)


def test_the_guard_is_killed_and_another_process_thaws(root: Path) -> None:
    with freezing(root) as freezer:
        assert freezer.line() == "frozen"
        guard = freezer.guard()
        os.kill(guard, signal.SIGKILL)
        # Until it has ended, it could still receive a request to thaw.
        wait_for_state(guard, "Z")
        assert thaw(root)
        freezer.go()
        assert freezer.line().startswith("UnguardedError another process thawed")
        check_over(root, freezer)


def test_another_process_thaws(root: Path) -> None:
    with freezing(root) as freezer:
        assert freezer.line() == "frozen"
        assert thaw(root)
        freezer.go()
        assert freezer.line().startswith("UnguardedError another process thawed")
        check_over(root, freezer)


def test_the_group_of_the_parent_is_killed(root: Path) -> None:
    with freezing(root) as freezer:
        assert freezer.line() == "frozen"
        with waiting(root, freezer):
            freezer.signal(signal.SIGKILL)
        check_over(root, freezer)


@pytest.mark.usefixtures("ending_signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_to_the_guard_and_its_parent(root: Path, number: signal.Signals) -> None:
    with freezing(root) as freezer:
        assert freezer.line() == "frozen"
        guard = freezer.guard()
        with waiting(root, freezer):
            os.kill(guard, number)
            freezer.signal(number)
        # Python makes an error of the one, that goes through the block; the others end it at once.
        assert freezer.line() == ("KeyboardInterrupt" if number == signal.SIGINT else "")
        assert freezer.process.wait() == -number
        check_over(root, freezer)


def test_an_error_in_the_block(root: Path) -> None:
    with freezing(root, block="raise ValueError('in the block')") as freezer:
        assert [freezer.line(), freezer.line()] == ["frozen", "ValueError in the block"]
        check_over(root, freezer)


def test_an_error_in_the_block_while_the_guard_is_gone(root: Path) -> None:
    with freezing(root, block="go(); raise ValueError('in the block')") as freezer:
        assert freezer.line() == "frozen"
        os.kill(freezer.guard(), signal.SIGKILL)
        freezer.go()
        assert freezer.line() == "ValueError in the block"
        check_over(root, freezer)


FROZEN_BY_ANOTHER = "NotNowError cannot freeze the filesystem: another process has frozen it"


def test_a_filesystem_already_frozen_by_another_process(root: Path) -> None:
    with frozen_by_others(os.fsencode(root)), freezing(root) as freezer:
        line, _, remedy = freezer.line().partition("; ")
        assert line == FROZEN_BY_ANOTHER
        *_, command = remedy.rpartition("run: ")
        assert command == f"fsfreeze --unfreeze {root}"
        wait_for_no_guard(freezer.pid)
        # It stays frozen: the process that froze it may be taking a snapshot.
        waiter = Waiter(root, freezer.pid)
        waiter.start()
        assert waiter.waits()
    waiter.check_soon()
    check_not_frozen(root)


def test_two_freeze_at_once(root: Path) -> None:
    with freezing(root) as first, freezing(root) as second:
        lines = {first.line(): first, second.line(): second}
        assert {line.partition("; ")[0] for line in lines} == {"frozen", FROZEN_BY_ANOTHER}
        with waiting(root, lines["frozen"]):
            lines["frozen"].go()
        check_over(root, lines["frozen"])


def test_a_filesystem_that_cannot_be_frozen() -> None:
    folder = os.open("/proc", os.O_RDONLY)
    with pytest.raises(NotNowError, match="cannot freeze the filesystem"), frozen(folder):
        raise AssertionError
    os.close(folder)


@contextlib.contextmanager
def slow(made: Ground) -> Iterator[contextlib.ExitStack]:
    """Write much data to a device that accepts nothing until the stack is closed."""
    with (made.root / "dirty").open("wb") as file:
        file.write(os.urandom(4 << 20))
    server = made.served.server.pid
    with contextlib.ExitStack() as stopped:
        stopped.callback(os.kill, server, signal.SIGCONT)
        os.kill(server, signal.SIGSTOP)
        yield stopped


def test_the_freeze_takes_long(shared: Ground, root: Path) -> None:
    with slow(shared) as stopped, freezing(root) as freezer:
        wait_for_state(freezer.guard(), "D")
        time.sleep(0.5)
        stopped.close()
        assert freezer.line() == "frozen"
        freezer.go()
        assert freezer.line() == "thawed"
        check_over(root, freezer)


def test_the_parent_is_killed_while_the_freeze_takes_long(shared: Ground, root: Path) -> None:
    with slow(shared) as stopped, freezing(root) as freezer:
        wait_for_state(freezer.guard(), "D")
        freezer.process.kill()
        freezer.process.wait()
        stopped.close()
        check_over(root, freezer)


def test_the_guard_is_killed_while_the_freeze_takes_long(shared: Ground, root: Path) -> None:
    with slow(shared) as stopped, freezing(root) as freezer:
        guard = freezer.guard()
        wait_for_state(guard, "D")
        os.kill(guard, signal.SIGKILL)
        time.sleep(0.2)
        stopped.close()
        # The kernel has frozen it for a process that has ended.
        assert (
            freezer.line()
            == "NotNowError cannot freeze the filesystem: its guard process does not answer"
        )
        check_over(root, freezer)


def wait_for_state(pid: int, wanted: str) -> None:
    """Wait until a process waits for the kernel."""
    deadline = time.monotonic() + 10
    while state_of(pid) != wanted:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def unwritten(made: Ground) -> int:
    """Return the place of eight blocks that a file has and never wrote: they need a freeze."""
    name = f"unwritten{time.monotonic_ns()}"
    made.fill(name, b"")
    file = os.open(made.root / name, os.O_WRONLY)
    fallocate(file, 0, 8 * BLOCK)
    os.fsync(file)
    os.close(file)
    return made.place_of(name, 0)


def zeroing(made: Ground, place: int) -> list[str | Path]:
    """Return the command line that zeroes a free block."""
    yes = ("--apply", "--yes", "--journal")
    return ["respond", made.root, f"{place}+4096", *yes, made.journal]


def test_two_runs_at_once(shared: Ground, root: Path, tmp_path: Path) -> None:
    with (
        victim(tmp_path / "one") as one,
        victim(tmp_path / "two") as two,
        ThreadPoolExecutor(2) as pool,
    ):
        for number in range(5):
            place = unwritten(shared) + number * BLOCK
            bad = ByteRange(place + 512, 1024)
            shared.served.add(bad)
            words = zeroing(shared, place)
            runs = [pool.submit(who.run, *words) for who in (one, two)]
            codes = {run.result().code for run in runs}
            # One of them did it; the other one found nothing to do, or the freeze of the first.
            assert codes <= {0, 14}
            assert 0 in codes
            assert bad not in shared.served.bad()
            assert not shared.unfinished()
            check_not_frozen(root)


def test_the_journal_reports_a_killed_guard(shared: Ground, root: Path, tmp_path: Path) -> None:
    place = unwritten(shared)
    words = zeroing(shared, place)
    with victim(tmp_path / "runs") as program:
        shared.served.add(ByteRange(place, 512))
        at = 1 + program.run(*words).begun().index("freeze")
        known = shared.last_plan()
        shared.served.add(ByteRange(place, 512))
        assert program.run(*words, at=at, after=True, guard=True).code == 14
        ((step,),) = (plan.steps for plan in shared.plans(known))
        assert step.state is State.FAILED
        assert (
            "the guard process of the frozen filesystem was gone"
            in step.events[-1].detail["because"]
        )
        check_not_frozen(root)
        assert program.run("respond", "--resume", "--journal", shared.journal).code == 0
    ((step,),) = (plan.steps for plan in shared.plans(known))
    assert step.state is State.VERIFIED
