"""The actions of the policy: their rules, targets and limits, and those that no longer apply."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.support.journals import opened, report
from tests.support.mapping_processes import running

from whoseblock.errors import JournalError, LeftUndoneError
from whoseblock.fs.base import FileOwner, Free, LayerLocation, Mapping, OpenFile, Owner, Process
from whoseblock.journal import (
    Filter,
    History,
    PlannedStep,
    RecordedFailure,
    State,
    Step,
    open_journal,
)
from whoseblock.journal.run import Run
from whoseblock.processes import Wanted, find_processes
from whoseblock.ranges import ByteRange
from whoseblock.stack.kernel.host import Host
from whoseblock.watch.policy import signals
from whoseblock.watch.policy.actor import Actor
from whoseblock.watch.policy.limits import Limits, Moment
from whoseblock.watch.policy.programs import run_program
from whoseblock.watch.policy.rules import Policy, Rule, Users
from whoseblock.watch.policy.signals import send_signals, signal_recipients
from whoseblock.watch.store.state import StateFolder

ROW = Free(0, 512)
EXEC = Rule("tell", 1, exec=("/bin/true",))
HEAL = Rule("heal", 2, owner=("free",), respond="zero")


class Told:
    """Stands for who writes to devices."""

    def __init__(self) -> None:
        self.rules: list[str] = []

    def respond(self, _failure: RecordedFailure, policy: Policy, number: int) -> str:
        self.rules.append(policy.rules[number].name)
        return "done"


class Desk:
    """A journal with a failure, and actors that come and go."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.journal = str(folder / "journal.sqlite")
        self.told = Told()
        with opened(self.journal) as (_, run):
            self.failure = run.record_failure("sdzz", ByteRange(0, 512), report()).failure

    @contextlib.contextmanager
    def actor(self, *rules: Rule, **limits: int) -> Iterator[Actor]:
        policy = Policy(rules)
        policy = policy._replace(limits={**policy.limits, **limits})  # type: ignore[dict-item] # kinds of acts
        with StateFolder(self.state) as state, opened(self.journal) as (journal, run):
            yield Actor(journal, run, policy, state, self.told)

    def plan(self, *rules: Rule, rows: Sequence[Owner] = (ROW,)) -> None:
        with self.actor(*rules) as actor:
            assert actor.plan(self.failure, [(rule, list(rows)) for rule in rules])

    def perform(self, *rules: Rule, **limits: int) -> dict[str, int]:
        with self.actor(*rules, **limits) as actor:
            return actor.perform().actions

    def history(self) -> History:
        with open_journal(self.journal, write=False) as journal:
            (history,) = journal.histories(Filter())
        return history

    def steps(self) -> list[Step]:
        return [step for plan in self.history().plans for step in plan.steps]

    def ends(self) -> list[tuple[str, State, Any]]:
        """Return the kind of each step, its state, and why."""
        return [
            (step.kind, step.state, step.events[-1].detail.get("because")) for step in self.steps()
        ]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


# ------------------------------------------------------------------ what is still to be done


def test_planning_does_nothing_and_performing_all(desk: Desk) -> None:
    with desk.actor(EXEC, HEAL) as actor:
        assert not actor.plan(desk.failure, [])
        assert not actor.plan(desk.failure, [(Rule("only journal", 3), [ROW])])
    desk.plan(EXEC, HEAL)
    assert [step.state for step in desk.steps()] == [State.PLANNED] * 2
    assert desk.told.rules == []
    assert desk.perform(EXEC, HEAL) == {"exec done": 1, "respond done": 1}
    assert desk.told.rules == ["heal"]
    assert desk.perform(EXEC, HEAL) == {}
    assert [step.state for step in desk.steps()] == [State.VERIFIED] * 2


GONE = "the policy no longer has this rule"


@pytest.mark.parametrize(
    "now",
    [
        (),
        (EXEC,),
        (HEAL._replace(device="pmem*"),),
        (HEAL._replace(name="another"),),
        # What comes before it may be for the same owners.
        (Rule("never touch", 2, owner=("free",)), HEAL),
    ],
)
def test_acts_removed_from_the_policy_are_not_carried_out(
    desk: Desk, now: tuple[Rule, ...]
) -> None:
    desk.plan(HEAL)
    assert desk.perform(*now) == {"respond left": 1}
    assert desk.ends() == [("respond", State.SKIPPED, GONE)]
    assert desk.told.rules == []


def test_a_rule_that_only_moved_is_the_same(desk: Desk) -> None:
    desk.plan(HEAL)
    assert desk.perform(HEAL._replace(line=77), EXEC) == {"respond done": 1}


def test_a_program_of_a_changed_rule_is_not_run(desk: Desk) -> None:
    desk.plan(EXEC)
    assert desk.perform(HEAL, EXEC) == {"exec done": 1}
    desk.plan(EXEC)
    assert desk.perform(HEAL, EXEC._replace(exec=("/bin/false",))) == {"exec left": 1}


def test_the_limits_of_the_current_policy_apply(desk: Desk) -> None:
    desk.plan(HEAL)
    assert desk.perform(HEAL, respond=0) == {"respond limited": 1}
    assert desk.told.rules == []


def test_acts_planned_more_than_a_day_ago_are_left(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.plan(HEAL)
    later(monkeypatch, 86_399)
    desk.plan(HEAL)
    later(monkeypatch, 2)
    assert desk.perform(HEAL) == {"respond left": 1, "respond done": 1}
    assert desk.ends()[0][2] == "it was planned more than a day ago"


def test_signals_are_for_the_processes_of_one_boot(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = Rule("tell", 1, signal="SIGUSR1")
    desk.plan(rule, EXEC)
    monkeypatch.setattr("whoseblock.watch.policy.limits.boot_id", lambda: "another")
    assert desk.perform(rule, EXEC) == {"signal left": 1, "exec done": 1}
    assert desk.ends()[0][2] == "the machine was rebooted: these processes no longer exist"


def test_a_daemon_leaves_the_plans_of_another_alone(desk: Desk) -> None:
    desk.plan(HEAL)
    desk.state = desk.folder / "other"
    assert desk.perform() == {}
    assert desk.ends() == [("respond", State.PLANNED, None)]
    desk.state = desk.folder / "state"
    assert desk.perform(HEAL) == {"respond done": 1}


UNKNOWN = "its process ended before the step did; whether it took effect is unknown"


@pytest.mark.parametrize(
    ("method", "early", "times", "end"),
    [
        ("started", True, 1, (State.VERIFIED, None)),
        ("started", False, 0, (State.SKIPPED, UNKNOWN)),
        ("done", True, 1, (State.SKIPPED, UNKNOWN)),
        ("done", False, 1, (State.VERIFIED, None)),
        ("verified", True, 1, (State.VERIFIED, None)),
    ],
)
def test_killed_at_any_point_it_goes_on(
    tmp_path: Path, method: str, *, early: bool, times: int, end: tuple[State, str | None]
) -> None:
    desk = Desk(tmp_path)
    desk.plan(HEAL)
    with killing(method, early=early), pytest.raises(Killed):
        desk.perform(HEAL)
    desk.perform(HEAL)
    assert desk.ends() == [("respond", *end)]
    assert len(desk.told.rules) == times
    assert desk.perform(HEAL) == {}


@pytest.mark.parametrize("method", ["failed", "skipped"])
def test_a_program_that_failed_is_not_run_again_after_a_kill(desk: Desk, method: str) -> None:
    rule = EXEC._replace(exec=("/bin/false",))
    desk.plan(rule)
    with killing(method, early=method == "skipped"), pytest.raises(Killed):
        desk.perform(rule)
    assert desk.perform(rule) == {}
    assert desk.ends() == [("exec", State.SKIPPED, "the daemon does not try again")]


def test_steps_begun_by_another_run_are_left_alone(desk: Desk) -> None:
    desk.plan(EXEC)
    with opened(desk.journal) as (_, run):
        run.started(desk.steps()[0].id)
        assert desk.perform(EXEC) == {}
        assert desk.ends() == [("exec", State.STARTED, None)]
    assert desk.perform(EXEC) == {"exec unknown": 1}


def test_a_journal_that_is_lost_stops_everything(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.plan(HEAL)

    def refuse(*_: object) -> None:
        raise JournalError("gone")

    monkeypatch.setattr(Run, "started", refuse)
    with pytest.raises(JournalError):
        desk.perform(HEAL)
    assert desk.told.rules == []


class Killed(BaseException):
    """Stands for SIGKILL."""


@contextlib.contextmanager
def killing(name: str, *, early: bool) -> Iterator[None]:
    """End the process before, or after, one kind of write to the journal."""
    method = getattr(Run, name)

    def wrapped(*arguments: object, **options: object) -> None:
        if not early:
            method(*arguments, **options)
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, name, wrapped)
        yield


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Advance the clock of the actor."""
    now = Moment.now()
    moment = now._replace(uptime=now.uptime + seconds, at=now.at + seconds)
    monkeypatch.setattr(Moment, "now", lambda: moment)


# ------------------------------------------------------------------ limits

HERE = Moment("this boot", 10_000.0, 1_700_000_000.0)
AFTER = Moment("the next boot", 60.0, 1_700_000_000.0)


@pytest.mark.parametrize(
    ("now", "then", "since"),
    [
        # The clock may be set as one likes.
        (HERE, HERE._replace(uptime=9_000.0, at=HERE.at + 5), 1_000.0),
        (HERE, HERE._replace(uptime=9_000.0, at=0.0), 1_000.0),
        # The boot before: as the clock says, and what is yet to come was just now.
        (AFTER, HERE._replace(at=AFTER.at - 300), 300.0),
        (AFTER, HERE._replace(at=AFTER.at + 86_400), 60.0),
        # In any case it was before this boot.
        (AFTER._replace(uptime=4_000.0), HERE._replace(at=AFTER.at + 86_400), 4_000.0),
    ],
)
def test_times_relative_to_now(now: Moment, then: Moment, since: float) -> None:
    assert now.since(then) == since


def test_a_limit_per_hour(desk: Desk) -> None:
    now = Moment.now()
    for _ in range(3):
        desk.plan(EXEC)
    with opened(desk.journal) as (journal, run):
        for step, ago in zip(desk.steps(), (4_000.0, 100.0), strict=False):
            run.started(step.id, now._replace(uptime=now.uptime - ago).detail)
        # One of the user's own: whoseblock respond has no limit.
        run.started(desk.steps()[2].id)
        limits = Limits(journal)
        assert [limits.take("exec", 3, now) for _ in range(3)] == [True, True, False]
        # Another kind, and an hour later.
        assert limits.take("signal", 0, now) is False
        assert limits.take("signal", 1, now) is True
        assert limits.take("exec", 3, now._replace(uptime=now.uptime + 3_599)) is True
        assert limits.take("exec", 3, now._replace(uptime=now.uptime + 3_601)) is True


def test_neither_a_clock_set_back_nor_a_lost_folder_allows_more(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        desk.plan(EXEC)
        now = Moment.now()
        monkeypatch.setattr(Moment, "now", lambda: now._replace(at=now.at - 5))  # noqa: B023 - used at once
        for file in desk.state.iterdir():
            file.unlink()
        outcome = "exec done" if number < 2 else "exec limited"
        assert desk.perform(EXEC, exec=2) == {outcome: 1}
        monkeypatch.undo()
    assert desk.ends()[-1] == ("exec", State.SKIPPED, "the policy allows 2 an hour")


def test_the_journal_lists_begun_steps(journal_url: str) -> None:
    # More than are read at a time, of one kind, the latest first.
    with opened(journal_url) as (journal, run):
        failure = run.record_failure("sdzz", ByteRange(0, 512), report()).failure
        steps = [
            step
            for kind in ("exec", "signal")
            for step in run.plan([PlannedStep(kind, {}, failure)] * 300, [failure]).steps
        ]
        with journal.together():
            for number, step in enumerate(steps):
                run.started(step.id, {"number": number})
        run.failed(steps[0].id, "once more")
        run.started(steps[0].id, {"number": -1})
        told = [event.detail["number"] for event in journal.starts("exec")]
        assert told == [-1, *range(299, -1, -1)]
        assert list(journal.starts("respond")) == []


# ------------------------------------------------------------------ programs


def ran(script: str, timeout: int = 20, **answer: Any) -> str:  # noqa: ANN401 - of an answer
    failure = RecordedFailure(
        id=7,
        host="",
        machine_id="",
        device="sdzz",
        identity="",
        start=0,
        length=512,
        target="",
        first_seen=datetime.now(UTC),
        run=1,
        closed=None,
        closed_by=None,
        closed_because=None,
    )
    how = {"rule": "tell", "command": ["/bin/sh", "-c", script], "timeout": timeout}
    return run_program(how, failure, answer)


def test_a_program_ends_when_it_ends_whatever_it_left_running(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    assert ran(f"sleep 60 & echo $! > {pid}; echo said") == "said"
    assert alive(int(pid.read_text()))
    os.kill(int(pid.read_text()), signal.SIGKILL)


def test_a_program_that_takes_too_long_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    with pytest.raises(LeftUndoneError, match="timed out after 3 seconds and was killed: so far"):
        ran(f"echo so far; sleep 60 & echo $! > {pid}; wait", timeout=3)
    end = time.monotonic() + 10
    while alive(int(pid.read_text())):
        assert time.monotonic() < end
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def test_the_end_of_a_programs_output_is_kept() -> None:
    assert (
        ran("seq 1000000") == "".join(f"{n}\n" for n in range(999_000, 1_000_001))[-2000:].strip()
    )
    assert ran("exec >&-; sleep 0.1; exit 0") == ""
    with pytest.raises(LeftUndoneError, match=r"^/bin/sh exited with status 3: no$"):
        ran("echo no >&2; exit 3")


def test_the_output_of_a_program_is_bounded() -> None:
    # In a process of its own: it is about the most memory that it ever had.
    script = (
        "import resource, sys; sys.path.insert(0, '.')\n"
        "from tests.watch.policy.test_actor import ran\n"
        "most = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = most()\n"
        "ran('head -c 300000000 /dev/zero')\n"
        "print(most() - before)\n"
    )
    top = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, cwd=top)
    assert int(done.stdout) < 16 << 10, "KiB more than before"


def test_a_program_may_ignore_its_input_and_receives_any_name() -> None:
    told = ran("cat", owners=[{"paths": ["/odd\udcff"] * 100_000}])
    assert told.endswith('"/odd\\udcff"]}]}}')
    assert ran("true", owners=[{"paths": ["/odd"] * 100_000}]) == ""


# ------------------------------------------------------------------ signals


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(bytes(16 * 4096))
    return path


device_number = signals._device_number


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Pretend that the filesystem of the tests, which may be on no device, is on ``sdzz``."""

    def number(_host: Host, layer: str) -> int:
        assert layer == "sdzz"
        return tmp_path.stat().st_dev

    monkeypatch.setattr(signals, "_device_number", number)


def row(file: Path) -> FileOwner:
    """Return the owner of the first block of a file, with those that use it now."""
    status = file.stat()
    found = find_processes([Wanted(status.st_dev, status.st_ino, 0, 4096)])
    return owner(status.st_ino, *found.processes[0])


def owner(inode: int, *processes: Process, what: str = "data") -> FileOwner:
    return FileOwner(
        start=0,
        length=4096,
        inode=inode,
        fork="data",
        what=what,
        file_offset=0,
        unwritten=False,
        shared=False,
        processes=processes,
        via=(LayerLocation("sdyy", 512), LayerLocation("sdzz", 0)),
    )


def rule_to(users: Users) -> Rule:
    return Rule("tell", 1, signal="SIGUSR1", signal_to=users)


@pytest.mark.parametrize(("users", "pids"), [("mapped", [1]), ("open", [2]), ("all", [1, 2])])
def test_processes_with_a_mapping_and_with_an_open_file(users: Users, pids: list[int]) -> None:
    mapping = Mapping(0, 4096, 0, shared=True, readable=True, writable=True, executable=False)
    mapped = Process(1, 10, "", "mapped", 0, (mapping,), ())
    opened_it = Process(2, 20, "", "opened", 0, (), (OpenFile(3, ("O_RDONLY",), 0),))
    rows = [owner(131, mapped, opened_it), owner(131, mapped, opened_it), owner(132), ROW]
    told = signal_recipients(rule_to(users), rows)
    assert [one[0] for one in told["processes"]] == pids
    assert told["files"] == [["sdzz", 0, 131, 0, 4096]]
    assert (
        signal_recipients(rule_to(users), [owner(1, mapped, opened_it, what="map")])["files"][0][3]
        is None
    )


#: Ends with the signal, as a process does that has not asked for it.
MAPS = "map_file(0, PAGE); ready()"
OPENS = "kept = open(path); ready()"


def test_only_the_process_that_was_found_gets_a_signal(file: Path, tmp_path: Path) -> None:
    with running(MAPS, file) as (one,), running(OPENS, file) as (two,):
        how = signal_recipients(rule_to("all"), [row(file)])
        assert [process[0] for process in how["processes"]] == sorted((one, two))
        started = {process[0]: process for process in how["processes"]}
        # As if another process had its number by now.
        started[two][1] -= 1
        said = send_signals(how, tmp_path / "lock")
    assert said == (
        f"sent to {started[one][2]}[{one}]; "
        f"not to {started[two][2]}[{two}]: it no longer uses the file"
    )


def test_a_process_that_unmapped_the_range_gets_no_signal(file: Path, tmp_path: Path) -> None:
    program = "map_file(0, PAGE); kept = open(path); ready()"
    with running(program, file) as (pid,):
        how = signal_recipients(rule_to("mapped"), [row(file)])
        assert [process[0] for process in how["processes"]] == [pid]
    # In its place one that has the file open only, and one that has another part of it mapped.
    others = "kept = open(path); map_file(PAGE, PAGE); ready()"
    with running(others, file) as (pid,):
        (process,) = row(file).processes  # type: ignore[misc] # they were asked for
        how["processes"] = [[pid, process.start_time, "victim"]]
        expected = f"sent to no process; not to victim[{pid}]: it no longer uses the file"
        assert send_signals(how, tmp_path / "lock") == expected
        assert alive(pid)
        assert (
            send_signals(how | {"signal-to": "open"}, tmp_path / "lock") == f"sent to victim[{pid}]"
        )


def test_no_process_of_the_daemon_gets_a_signal(file: Path, tmp_path: Path) -> None:
    # This process, its parent, and the holder of the lock; all of them use the file.
    lock = tmp_path / "lock"
    lock.touch()
    program = "kept = open(path); lock = open(more[0]); ready()"
    with file.open("rb"), running(program, file, str(lock)) as (worker,):
        how = signal_recipients(rule_to("open"), [row(file)])
        names = {process[0]: f"{process[2]}[{process[0]}]" for process in how["processes"]}
        assert set(names) == {worker, os.getpid()}
        said = send_signals(how, lock).split("; ")
        assert alive(worker)
    why = "refused: it is process 1, whoseblock itself, or its parent"
    assert sorted(said) == sorted(
        [
            "sent to no process",
            f"not to {names[worker]}: it belongs to the daemon",
            f"not to {names[os.getpid()]}: {why}",
        ]
    )


def test_the_worker_does_not_end_of_its_own_signal(file: Path, desk: Desk) -> None:
    # In a child, which is its own victim: its parent has the lock of the daemon.
    rule = Rule("tell", 1, signal="SIGTERM", signal_to="open")
    with StateFolder(desk.state) as state, file.open("rb"):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                with opened(desk.journal) as (journal, run):
                    actor = Actor(journal, run, Policy((rule,)), state, desk.told)
                    actor.plan(desk.failure, [(rule, [row(file)])])
                    done = actor.perform().actions
                code = 0 if done == {"signal done": 1} else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    (step,) = desk.steps()
    assert {child, os.getpid()} <= {process[0] for process in step.parameters["processes"]}
    assert step.events[-2].detail["said"].startswith("sent to no process; ")


def test_devices_by_the_names_that_answers_have(tmp_path: Path) -> None:
    block = tmp_path / "sys/class/block"
    for name, number in (("sda1", "8:1"), ("dm-0", "253:0"), ("dm-1", "253:1")):
        (block / name).mkdir(parents=True)
        (block / name / "dev").write_text(number + "\n")
    (block / "dm-1/dm").mkdir()
    (block / "dm-1/dm/name").write_text("vg-lv\n")
    host = Host(tmp_path)
    assert device_number(host, "sda1") == os.makedev(8, 1)
    assert device_number(host, "vg-lv") == os.makedev(253, 1)
    assert device_number(host, "sdb") is None
