"""From reports to the journal: one record for one failure, for all sources and after kills.

The devices here are not on any machine: failures are journaled with unknown owners.
`test_watch_kernel` has real ones.
"""

import contextlib
import itertools
import os
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from tests.support.tools import Missing

from whoseblock.errors import JournalError
from whoseblock.fs.base import Answer, FileOwner, Free, LayerLocation, Process
from whoseblock.journal import Filter, History, Overview, State, open_journal
from whoseblock.journal.journal import Journal
from whoseblock.journal.run import Run
from whoseblock.ranges import ByteRange
from whoseblock.watch.attribution.failure_records import FailureRecords
from whoseblock.watch.attribution.locations import FailureLocation
from whoseblock.watch.policy.rule_matching import match_rules
from whoseblock.watch.policy.rules import Policy, Rule
from whoseblock.watch.processor import Processor, Setup
from whoseblock.watch.store.reports import (
    BadBlockList,
    EventsLost,
    FailedRange,
    FilesystemError,
    Report,
)
from whoseblock.watch.store.state import StateFolder

AT = 1_700_000_000.0


def failed(start: int, length: int = 512, *, source: str = "kmsg", key: str = "") -> FailedRange:
    name = key or f"{source}:{start}"
    return FailedRange(source=source, at=AT, key=name, device="sdzz", start=start, length=length)


def listed(number: int, *ranges: tuple[int, int]) -> BadBlockList:
    pieces = tuple(ByteRange(*one) for one in ranges)
    return BadBlockList(source="sysfs", at=AT, key=f"list{number}", device="sdzz", ranges=pieces)


class House:
    """A journal and a state folder, and processors that come and go."""

    def __init__(self, folder: Path, rules: Sequence[Rule] = ()) -> None:
        self.folder = folder
        self.journal = folder / "journal.sqlite"
        self.policy = Policy(tuple(rules))

    @contextlib.contextmanager
    def processor(self) -> Iterator[Processor]:
        with StateFolder(self.folder / "state") as state:
            setup = Setup(state, self.policy, str(self.journal), since=AT)
            with Processor(setup) as processor:
                processor.perform()
                yield processor

    def process(self, *groups: Sequence[Report]) -> Any:  # noqa: ANN401 - of any kind
        with self.processor() as processor:
            done = processor.process(groups)
            done.add(processor.perform())
            return done

    def histories(self) -> list[History]:
        with open_journal(str(self.journal), write=False) as journal:
            return list(journal.histories(Filter()))

    def records(self) -> list[tuple[int, int, list[tuple[str, int]], int, bool]]:
        """Return start, length, who reported it from where, findings, and whether it is open."""
        return [
            (
                one.failure.start,
                one.failure.length,
                [(report.source, report.detail["start"]) for report in one.reports],
                len(one.findings),
                one.failure.closed is None,
            )
            for one in self.histories()
        ]


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def test_one_failure_of_several_sources_is_one_entry(house: House) -> None:
    house.process([failed(512), failed(512, source="tracepoint")], [failed(512, key="later")])
    house.process([failed(512, source="sysfs")])
    (one,) = house.records()
    assert one[:2] == (512, 512)
    assert one[2] == [("kmsg", 512), ("tracepoint", 512), ("kmsg", 512), ("sysfs", 512)]
    assert one[3:] == (1, True)


def test_the_same_event_is_journaled_once(house: House) -> None:
    event = replace(failed(512), at=time.time() - 10)
    house.process([event])
    house.process([event])
    close(house)
    house.process([event])
    assert house.records() == [(512, 512, [("kmsg", 512)], 1, False)]
    # What was noticed before that is nothing new; what was noticed after is a new failure.
    house.process([replace(event, key="early")])
    assert len(house.records()) == 1
    house.process([replace(event, key="late", at=time.time())])
    assert [one[4] for one in house.records()] == [False, True]


def test_an_old_failure_was_dealt_with_a_moment_ago(house: House) -> None:
    # The repair reads the sector, and this is reported after it is healed.
    house.process([failed(512)])
    seen = time.time()
    close(house)
    house.process([replace(failed(512, key="healing"), at=seen)])
    assert [one[4] for one in house.records()] == [False]


@pytest.mark.parametrize("moment", range(4))
def test_a_failure_that_another_process_closes_at_any_moment(
    house: House, moment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.process([failed(512)])
    seen, asked, failures = time.time(), itertools.count(), Journal.failures
    ours = FailureLocation("sdzz", "", 512, 512, None)

    def meanwhile(self: Journal, wanted: Filter) -> Iterator[Overview]:
        if next(asked) == moment:
            close(house)
        yield from list(failures(self, wanted))

    monkeypatch.setattr(Journal, "failures", meanwhile)
    with open_journal(str(house.journal)) as journal, journal.begin_run([], "0") as run:
        entries = FailureRecords(journal, run)
        entries.covers(ours)
        assert next(asked) == 2
        if moment > 1:
            close(house)
        if moment == 3:
            entries.refresh(others_close=True)
        again = replace(failed(512, key="healing"), at=seen, times=2, last=seen)
        assert not any(one.new for one in entries.record(again, ours))
    assert [one[4] for one in house.records()] == [False]


def close(house: House) -> None:
    with open_journal(str(house.journal)) as journal, journal.begin_run(["test"], "0") as run:
        run.close_failure(1, "dealt with")


def test_repeated_reports_are_counted(house: House) -> None:
    house.process([failed(512, key=str(number)) for number in range(1000)])
    (history,) = house.histories()
    (report,) = history.reports
    assert report.detail["times"] == 1000


def test_entries_of_one_device_never_overlap(house: House) -> None:
    house.process([failed(4096), failed(8192, 1024)])
    house.process([failed(0, 16384, source="sysfs")])
    assert house.records() == [
        (4096, 512, [("kmsg", 4096), ("sysfs", 0)], 1, True),
        (8192, 1024, [("kmsg", 8192), ("sysfs", 0)], 1, True),
        (0, 4096, [("sysfs", 0)], 1, True),
        (4608, 3584, [("sysfs", 0)], 1, True),
        (9216, 7168, [("sysfs", 0)], 1, True),
    ]


def test_a_missing_device_is_reported(house: House) -> None:
    house.process([failed(0)])
    (history,) = house.histories()
    answer = history.findings[0].answer
    assert answer["complete"] is False
    assert answer["notes"] == ["no block device 'sdzz'"]
    assert [owner["kind"] for owner in answer["owners"]] == ["unknown"]


def test_ranges_that_leave_a_list_are_healed(house: House) -> None:
    house.process([listed(1, (0, 1024), (4096, 512))])
    house.process([listed(2, (4096, 512))])
    assert [(one[0], one[4]) for one in house.records()] == [(0, False), (4096, True)]
    # Within one batch, too; and what comes back is a new failure.
    done = house.process([listed(3, (0, 512), (4096, 512))], [listed(4)])
    assert done.healed == 2
    house.process([listed(5, (0, 512))])
    assert [(one[0], one[1], one[4]) for one in house.records()] == [
        (0, 1024, False),
        (4096, 512, False),
        (0, 512, False),
        (0, 512, True),
    ]


def test_a_partly_healed_range_stays_open(house: House) -> None:
    house.process([listed(1, (0, 1024))])
    assert house.process([listed(2, (512, 512))]).healed == 0
    assert [one[4] for one in house.records()] == [True]


def test_a_report_without_a_range_is_logged(
    house: House, capfd: pytest.CaptureFixture[str]
) -> None:
    done = house.process(
        [
            EventsLost(source="kmsg", at=AT, count=7, what="overwritten"),
            FilesystemError(source="fanotify", at=AT, place="/srv\n", what="EUCLEAN"),
        ]
    )
    assert (done.lost, done.ill, house.records()) == ({"kmsg": 7}, {"fanotify": 1}, [])
    said = capfd.readouterr().err.splitlines()
    assert said[0].startswith("event=events-lost source=kmsg at=2023-11-14T22:13:20.000+00:00")
    assert 'place="/srv\\n"' in said[1]


# ------------------------------------------------------------------ killed anywhere

WORK: list[list[Report]] = [
    [failed(512), failed(512, source="tracepoint"), failed(4096)],
    [listed(1, (0, 8192)), EventsLost(source="kmsg", at=AT, count=1, what="gone")],
    [listed(2, (4096, 512)), failed(512, key="again")],
]
METHODS = "record_failure record_finding close_failure plan started done verified".split()


class Killed(BaseException):
    """Stands for SIGKILL: nothing that the program does comes after it."""


def killing(monkeypatch: pytest.MonkeyPatch, after: int, *, early: bool) -> None:
    """End the process before, or after, a number of writes to the journal."""
    writes = iter(range(after, -1, -1))

    def wrap(method: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401 - of any kind
            last = next(writes, 1) == 0
            if last and early:
                raise Killed
            result = method(*arguments, **options)
            if last:
                raise Killed
            return result

        return wrapped

    for name in METHODS:
        monkeypatch.setattr(Run, name, wrap(getattr(Run, name)))


def in_words(house: House) -> list[Any]:
    """Return all that matters of a journal."""
    return [
        (
            one.failure.range,
            one.failure.closed is None,
            sorted((report.source, report.detail["start"]) for report in one.reports),
            [finding.answer["owners"] for finding in one.findings],
            [(step.kind, step.state) for plan in one.plans for step in plan.steps],
        )
        for one in house.histories()
    ]


def test_killed_at_any_write_nothing_is_twice_and_nothing_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = tmp_path / "count"
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\necho $WHOSEBLOCK_FAILURE >> {count}\n")
    program.chmod(0o755)
    rules = [Rule("tell", 1, exec=(str(program),))]
    (tmp_path / "right").mkdir()
    right = House(tmp_path / "right", rules)
    right.process(*WORK)
    expected = in_words(right)
    ran = sorted(count.read_text().split())
    assert len(expected) == len(ran) == 6
    killed = 0
    for after in range(0, 48, 3):
        count.write_text("")
        (tmp_path / str(after)).mkdir()
        house = House(tmp_path / str(after), rules)
        with monkeypatch.context() as patch:
            killing(patch, after, early=after % 2 == 0)
            with contextlib.suppress(Killed):
                house.process(*WORK)
                continue
        killed += 1
        # A started action is not started again, and the journal records that.
        house.process(*WORK)
        found = in_words(house)
        assert [one[:4] for one in found] == [one[:4] for one in expected], after
        states = [step[1] for one in found for step in one[4]]
        assert len(states) == 6, after
        assert set(states) <= {State.VERIFIED, State.SKIPPED}, after
        done = sorted(count.read_text().split())
        assert len(set(done)) == len(done), after
        assert states.count(State.SKIPPED) <= 1
        assert len(done) >= 6 - states.count(State.SKIPPED)
    assert killed > 10


# ------------------------------------------------------------------ acts


def owner(pid: int, start_time: int) -> FileOwner:
    process = Process(
        pid=pid, start_time=start_time, started="", command="victim", uid=0, mappings=(), open=()
    )
    return FileOwner(
        start=0,
        length=512,
        inode=131,
        fork="data",
        what="data",
        file_offset=0,
        unwritten=False,
        shared=False,
        paths=("/a",),
        mounted_at=("/srv/a",),
        processes=(process,),
        via=(LayerLocation("sdzz", 0), LayerLocation("vg-lv", 0)),
    )


def test_every_owner_has_its_first_rule() -> None:
    rules = (
        Rule("free", 1, owner=("free",)),
        Rule("none", 2, filesystem="/home"),
        Rule("path", 3, path="/srv/*", device="vg-*"),
        Rule("rest", 4),
    )
    rows = (owner(1, 1), owner(2, 1), Free(512, 512))
    answer = Answer(0, 1024, complete=True, notes=(), owners=rows)
    chosen = match_rules(Policy(rules), answer, "sdzz", {"vg-lv": {"/srv"}})
    assert [(rule.name, len(rows)) for rule, rows in chosen] == [("free", 1), ("path", 2)]


def test_acts_beyond_a_limit_are_left(tmp_path: Path) -> None:
    house = House(tmp_path, [Rule("tell", 1, exec=("/bin/true",))])
    house.policy = house.policy._replace(limits={"exec": 2})
    done = house.process([failed(start * 4096) for start in range(4)])
    assert done.actions == {"exec done": 2, "exec limited": 2}
    # The limit holds for the next daemon, too.
    assert house.process([failed(512)]).actions == {"exec limited": 1}
    steps = [plan.steps[0] for one in house.histories() for plan in one.plans]
    assert [step.state for step in steps] == [State.VERIFIED] * 2 + [State.SKIPPED] * 3
    assert steps[-1].events[-1].detail == {"because": "the policy allows 2 an hour"}


def test_a_program_that_fails_and_one_that_is_not_there(tmp_path: Path) -> None:
    commands = (("/bin/sh", "-c", "echo no >&2; exit 3"), ("/nonexistent",), ("/bin/sleep", "60"))
    for number, command in enumerate(commands):
        rule = Rule("tell", 1, exec=command, exec_timeout=3)
        (tmp_path / str(number)).mkdir()
        house = House(tmp_path / str(number), [rule])
        assert house.process([failed(0)]).actions == {"exec failed": 1}
        (history,) = house.histories()
        failure = history.plans[0].steps[0].events[-2]
        assert failure.state is State.FAILED
        assert ("/bin/sh exited with status 3: no", "No such file", "timed out")[
            number
        ] in failure.detail["because"]


def test_a_program_is_run_by_a_process_with_many_open_files(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limits[1] != resource.RLIM_INFINITY and limits[1] < 4096:
        raise Missing("this process may not open 2000 files: raise the hard limit (ulimit -H -n)")
    house = House(tmp_path, [Rule("tell", 1, exec=("/bin/sleep", "0.3"))])
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, limits[1]))
    try:
        with contextlib.ExitStack() as stack:
            for _ in range(2000):
                stack.callback(os.close, os.open("/dev/null", os.O_RDONLY))
            assert house.process([failed(0)]).actions == {"exec done": 1}
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_program_receives_every_field(tmp_path: Path) -> None:
    said = tmp_path / "said"
    rule = Rule("tell", 1, exec=("/bin/sh", "-c", f"env > {said}.env; cat > {said}"))
    House(tmp_path, [rule]).process([failed(512)])
    assert b'"device":"sdzz","start":512,"length":512,"rule":"tell"' in said.read_bytes()
    environment = (tmp_path / "said.env").read_text()
    assert "WHOSEBLOCK_START=512\n" in environment
    assert "NOTIFY_SOCKET" not in environment


def test_nothing_is_written_to_a_device_by_itself(tmp_path: Path) -> None:
    house = House(tmp_path, [Rule("heal", 1, owner=("unknown",), respond="zero")])
    assert house.process([failed(0)]).actions == {"respond failed": 1}


def test_without_a_journal_there_is_an_error(tmp_path: Path) -> None:
    house = House(tmp_path)
    house.journal.mkdir()
    with pytest.raises(JournalError):
        house.process([failed(0)])
