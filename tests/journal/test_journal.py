"""The journal gives back what was written, says the same failure once, and keeps steps in order."""

import os
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import event, select
from sqlalchemy.dialects import sqlite
from tests.support.journals import PAGE, answer, file_row, metadata_row, opened, report
from tests.support.tools import CHECKOUT

from whoseblock.errors import JournalError
from whoseblock.journal import (
    FINAL,
    Event,
    Filter,
    Host,
    Limits,
    NewReport,
    PlannedStep,
    State,
    open_journal,
)
from whoseblock.journal.run import _OPEN
from whoseblock.journal.schema import owners
from whoseblock.ranges import ByteRange

if TYPE_CHECKING:
    from collections.abc import Callable

OTHER = Host("other", "f" * 32)
NASTY = "/a\udc80\udcff/\n\0\x1b[31m'\\u0041\\ \u202e√"


def test_every_stored_value_is_read_back(journal_url: str) -> None:
    began = datetime.now(UTC)
    with opened(journal_url) as (journal, run):
        told = NewReport(
            source="dmesg",
            origin=f"log{NASTY}, line 3",
            at=datetime(2020, 4, 7, 12, 0, 0, 123456, UTC),
            detail={"text": NASTY, "n": [1, None, 1 << 63]},
        )
        noted = run.record_failure("pmem0", PAGE, told, identity=NASTY, target="/dev/pmem0")
        said = answer(
            file_row(NASTY, "/b", inode=(1 << 64) - 1),
            metadata_row(),
            complete=False,
            notes=(NASTY,),
        )
        run.record_finding(noted.failure, said)
        parameters = {"start": 0, "name": NASTY}
        plan = run.plan([PlannedStep("zero", parameters)], [noted.failure], {"apply": True})
        (step,) = plan.steps
        run.started(step.id)
        run.failed(step.id, "EIO", {"errno": 5})
        run.started(step.id)
        run.done(step.id)
        run.verified(step.id, {"read": "zeros"})
        run.close_failure(noted.failure, "zeroed")
        run.close_failure(noted.failure, "again")
    with open_journal(journal_url, write=False) as journal:
        history = journal.history(noted.failure)
        assert list(journal.histories()) == [history]
        assert journal.plan(plan.id) == history.plans[0]
        assert journal.unfinished() == []
        assert not journal.is_running(run.id)
    failure = history.failure
    assert (failure.device, failure.identity, failure.range) == ("pmem0", NASTY, PAGE)
    assert (failure.target, failure.host) == ("/dev/pmem0", journal.host.name)
    assert failure.closed is not None
    assert failure.closed_because == "zeroed"
    assert failure.first_seen == told.at
    assert began <= failure.closed <= datetime.now(UTC)
    (again,) = history.reports
    assert (again.source, again.origin, again.at) == (told.source, told.origin, told.at)
    assert again.detail == told.detail
    (finding,) = history.findings
    assert finding.notes == (NASTY,)
    assert not finding.complete
    assert finding.answer["owners"][0]["paths"] == [NASTY, "/b"]
    assert finding.answer["owners"][0]["inode"] == (1 << 64) - 1
    (after,) = history.plans[0].steps
    assert history.plans[0].options == {"apply": True}
    assert (after.state, after.attempts, after.parameters) == (State.VERIFIED, 2, parameters)
    states = "planned started failed started done verified".split()
    assert [event.state for event in after.events] == states
    assert [event.number for event in after.events] == list(range(6))
    assert after.events[2].detail == {"because": "EIO", "errno": 5}
    (who,) = history.runs
    assert (who.uid, who.pid, who.version) == (os.geteuid(), os.getpid(), "1.2.3")
    assert who.command == ("a", "test")
    assert who.ended is not None


def test_no_name_is_changed(journal_url: str) -> None:
    with opened(journal_url) as (journal, run):

        @given(
            st.text(st.characters(exclude_categories=())),
            st.lists(st.binary().map(os.fsdecode), max_size=4),
            st.integers(0, 2**64 - 1),
        )
        @settings(max_examples=25)
        def check(text: str, paths: list[str], inode: int) -> None:
            told = NewReport(source=text, origin=text, detail={"paths": paths})
            noted = run.record_failure(text, PAGE, told)
            run.record_finding(noted.failure, answer(file_row(*paths, inode=inode)))
            history = journal.history(noted.failure)
            assert history.failure.device == text
            last = history.reports[-1]
            assert (last.source, last.origin, last.detail) == (text, text, told.detail)
            row = history.findings[-1].answer["owners"][0]
            assert (row["paths"], row["inode"]) == (paths, inode)
            for path in paths:
                found = journal.failures(Filter(file=path, device=text))
                assert noted.failure in [one.failure.id for one in found]

        check()


def test_a_path_longer_than_an_index_takes(journal_url: str) -> None:
    path = "/" + "/".join(f"{number:0255}" for number in range(64))
    with opened(journal_url) as (journal, run):
        noted = run.record_failure("sda", PAGE, report())
        run.record_finding(noted.failure, answer(file_row(path)))
        (found,) = journal.failures(Filter(file=path))
        assert found.path == path


# ------------------------------------------------------------------ the same failure


def test_the_same_failure_is_one_while_it_is_open(journal_url: str) -> None:
    with opened(journal_url) as (journal, run):
        first = run.record_failure("sda", PAGE, report("dmesg"))
        again = run.record_failure("sda", PAGE, report("sysfs"))
        assert (first.new_failure, again.new_failure) == (True, False)
        assert again.failure == first.failure
        others = (
            run.record_failure("sdb", PAGE, report()),
            run.record_failure("sda", ByteRange(PAGE.start, 512), report()),
            run.record_failure("sda", ByteRange(0, PAGE.length), report()),
        )
        assert all(other.new_failure for other in others)
        run.close_failure(first.failure, "restored")
        later = run.record_failure("sda", PAGE, report("dmesg"))
        assert later.new_failure
        assert [one.source for one in journal.history(first.failure).reports] == ["dmesg", "sysfs"]
    with opened(journal_url, OTHER) as (journal, run):
        assert run.record_failure("sda", PAGE, report()).new_failure
    with opened(journal_url, OTHER._replace(machine_id="e" * 32)) as (journal, run):
        assert run.record_failure("sda", PAGE, report()).new_failure


def test_a_finding_is_completed(journal_url: str) -> None:
    with opened(journal_url) as (journal, run):
        failure = run.record_failure("pmem0", PAGE, report()).failure
        other = run.record_failure("pmem1", PAGE, report()).failure
        first = run.record_finding(failure, answer(file_row("/a")))
        run.complete_finding(first, failure, answer(file_row("/a"), notes=("more",)))
        found = journal.history(failure).findings
        # In a database of many hosts findings are only added.
        assert len(found) == (
            1 if journal_url.startswith("sqlite") or "://" not in journal_url else 2
        )
        assert found[-1].notes == ("more",)
        assert found[-1].authentic
        # One of another failure is not touched.
        run.complete_finding(first, other, answer(file_row("/b")))
        assert journal.history(failure).findings == found
        assert len(journal.history(other).findings) == 1
        assert journal.count_open() == (2, 2 * PAGE.length)
        run.close_failure(other, "done")
        assert journal.count_open() == (1, PAGE.length)


def test_a_device_is_identified_by_its_number_not_its_name(journal_url: str) -> None:
    with opened(journal_url) as (_, run):
        one = run.record_failure("sda", PAGE, report(), identity="serial 1").failure
        assert run.record_failure("sdb", PAGE, report(), identity="serial 1").failure == one
        other = run.record_failure("sda", PAGE, report(), identity="serial 2").failure
        assert other != one
        assert run.record_failure("sda", PAGE, report()).failure == one


def test_an_event_is_journaled_once(journal_url: str) -> None:
    with opened(journal_url) as (journal, run):
        first = run.record_failure("sda", PAGE, report("dmesg", "boot 1, 17"))
        run.close_failure(first.failure, "restored")
        # The log is read from its beginning once more.
        again = run.record_failure("sda", PAGE, report("dmesg", "boot 1, 17"))
        assert again == (first.failure, False, False)
        assert len(journal.history(first.failure).reports) == 1
        assert run.record_failure("sda", PAGE, report("dmesg", "boot 1, 18")).new_failure
        assert run.record_failure("sda", PAGE, report("sysfs", "boot 1, 17")).new_report
    with opened(journal_url, OTHER) as (_, run):
        assert run.record_failure("sda", PAGE, report("dmesg", "boot 1, 17")).new_failure


def test_a_report_of_a_failure_that_was_closed_in_the_meantime(journal_url: str) -> None:
    with opened(journal_url) as (journal, run):
        number = run.record_failure("sda", PAGE, report(), identity="wwn 5", target="t").failure
        noted = run.record_report(number, report("dmesg", "17"), datetime.now(UTC))
        assert noted == (number, False, True)
        seen = datetime.now(UTC)
        run.close_failure(number, "restored")
        # It was seen before.
        assert run.record_report(number, report("dmesg", "18"), seen) == (number, False, True)
        assert len(journal.history(number).reports) == 3
        assert journal.history(number).failure.closed is not None
        # It was seen after.
        new, *what = run.record_report(number, report("dmesg", "19"), datetime.now(UTC))
        assert what == [True, True]
        again = journal.history(new).failure
        assert (again.identity, again.target, again.range) == ("wwn 5", "t", PAGE)
        assert again.closed is None
        assert run.record_report(number, report("dmesg", "19"), seen) == (new, False, False)


# ------------------------------------------------------------------ filters


def test_filters(journal_url: str) -> None:
    day = datetime(2026, 1, 1, tzinfo=UTC)
    with opened(journal_url, OTHER) as (_, run):
        run.record_failure("sda", ByteRange(0, 512), NewReport(source="x", at=day))
    with opened(journal_url) as (journal, run):
        told = NewReport(source="x", at=day + timedelta(days=2))
        second = run.record_failure("sdb", PAGE, told, identity="wwn 5", target="disk.img").failure
        run.record_finding(second, answer(file_row("/old")))
        run.record_finding(
            second,
            answer(file_row("/a", "/b", mounted=("/mnt/a",)), file_row("/a"), metadata_row()),
        )
        third = run.record_failure("sdc", ByteRange(8192, 1), report()).failure
        steps = run.plan(
            [PlannedStep("one", {}, second), PlannedStep("both", {})], [second, third]
        ).steps
        run.started(steps[0].id)
        before = datetime.now(UTC)
        run.close_failure(third, "nothing to do")

        def ids(**wanted: object) -> list[int]:
            found = journal.failures(Filter(**wanted))  # type: ignore[arg-type] # of many kinds
            exported = journal.histories(Filter(**wanted))  # type: ignore[arg-type] # of many kinds
            result = [one.failure.id for one in found]
            assert [one.failure.id for one in exported] == result
            return result

        (first,) = ids(host="other")
        assert ids() == [first, second, third]
        assert ids(device="sdb") == ids(device="/dev/sdb") == ids(device="wwn 5") == [second]
        assert ids(device="disk.img") == [second]
        assert ids(device="sd") == []
        assert (
            ids(file="/a") == ids(file="/b") == ids(file="/mnt/a") == ids(file="/old") == [second]
        )
        assert ids(file="/") == []
        assert ids(until=day) == []
        assert ids(since=day, until=day + timedelta(microseconds=1)) == [first]
        assert ids(since=day + timedelta(seconds=1)) == [second, third]
        assert ids(state=State.STARTED) == [second]
        # The third is closed: its planned step will not be taken.
        assert ids(state=State.PLANNED) == [second]
        assert ids(state=State.DONE) == []
        assert ids(open=True) == [first, second]
        assert ids(open=False) == ids(closed_since=before) == [third]
        assert ids(closed_since=datetime.now(UTC)) == []
        assert ids(overlapping=ByteRange(511, 1)) == [first]
        assert ids(overlapping=ByteRange(512, 7680)) == []
        assert ids(device="sdb", host="other") == []
        nothing, overview, other = journal.failures()
        assert (nothing.complete, nothing.owners, nothing.path) == (None, {}, None)
        assert overview.owners == {"file": 2, "metadata": 1}
        assert (overview.path, overview.paths, overview.reports) == ("/a", 2, 1)
        assert overview.states == {"started": 1, "planned": 1}
        assert other.states == {}


def test_planned_steps_that_will_not_be_taken_do_not_count(journal_url: str) -> None:
    with opened(journal_url) as (journal, run):
        failure = run.record_failure("sda", PAGE, report()).failure
        other = run.record_failure("sdb", PAGE, report()).failure

        def planned(*failures: int) -> list[int]:
            steps = [PlannedStep("zero", {}, one) for one in failures]
            return [step.id for step in run.plan(steps, failures).steps]

        def states() -> list[dict[State, int]]:
            return [dict(one.states) for one in journal.failures()]

        planned(failure, failure)  # a dry run
        assert states() == [{State.PLANNED: 2}, {}]
        first, _ = planned(failure, other)
        assert states() == [{State.PLANNED: 1}, {State.PLANNED: 1}]
        run.started(first)
        # A plan with a step that was begun can be resumed.
        planned(other)
        assert states() == [{State.STARTED: 1}, {State.PLANNED: 2}]
        planned(failure)
        run.done(first)
        run.verified(first, closes=(failure, "healed"))
        assert states() == [{State.VERIFIED: 1}, {State.PLANNED: 2}]
        wanted = Filter(state=State.PLANNED)
        assert [one.failure.id for one in journal.failures(wanted)] == [other]
        # The history has them.
        assert len(journal.history(failure).plans) == 3


def test_many_failures_come_in_order(journal_url: str) -> None:
    with opened(journal_url, limits=Limits(batch=10, histories=10)) as (journal, run):
        made = [run.record_failure("sda", ByteRange(n, 1), report()).failure for n in range(30)]
        for number in made[::3]:
            run.plan([PlannedStep("zero", {}, number)], [number, made[0]])
            run.record_finding(number, answer(file_row("/a")))
        assert [one.failure.id for one in journal.failures()] == made
        together = list(journal.histories())
        assert together == [journal.history(number) for number in made]
        assert len(together[0].plans) == len(made[::3])


def test_many_histories_are_read_with_few_questions(tmp_path: Path) -> None:
    asked: list[str] = []
    with opened(str(tmp_path / "journal")) as (journal, run):
        for number in range(200):
            run.record_failure("sda", ByteRange(number, 1), report())
        event.listen(
            journal._database._engine,
            "before_cursor_execute",
            lambda _connection, _cursor, statement, *_: asked.append(statement),
        )
        assert len(list(journal.histories())) == 200
    assert len([one for one in asked if one.startswith("SELECT")]) <= 4 * 10


# ------------------------------------------------------------------ steps

_LETTERS = dict(zip("psdvfk", State, strict=True))
_LETTER_OF = {state: letter for letter, state in _LETTERS.items()}
#: All histories that a step can have, a letter for each state.
_HISTORIES = re.compile(r"p(s+d?f)*(s+d?)?k?|p(s+d?f)*s+dv")


def test_steps_follow_their_allowed_transitions(journal_url: str) -> None:
    with opened(journal_url) as (journal, run):
        failure = run.record_failure("sda", PAGE, report()).failure
        acts: dict[str, Callable[[int], Event]] = {
            "s": run.started,
            "d": run.done,
            "v": run.verified,
            "f": lambda step: run.failed(step, "why"),
            "k": lambda step: run.skipped(step, "why"),
        }

        @given(st.text(st.sampled_from("sssddvfk"), max_size=12))
        @settings(max_examples=60)
        def check(wanted: str) -> None:
            plan = run.plan([PlannedStep("zero", {}), PlannedStep("other", {})], [failure])
            step = plan.steps[0].id
            history = "p"
            for letter in wanted:
                if _HISTORIES.fullmatch(history + letter):
                    event = acts[letter](step)
                    assert (event.state, event.number) == (_LETTERS[letter], len(history))
                    history += letter
                else:
                    with pytest.raises(JournalError):
                        acts[letter](step)
            after, other = journal.plan(plan.id).steps
            assert "".join(_LETTER_OF[event.state] for event in after.events) == history
            assert after.state is after.events[-1].state is _LETTERS[history[-1]]
            assert after.attempts == history.count("s")
            assert other.state is State.PLANNED
            assert (after.state in FINAL) == (history[-1] in "vk")

        check()


def test_records_of_missing_failures_are_refused(journal_url: str) -> None:
    with opened(journal_url) as (journal, run):
        failure = run.record_failure("sda", PAGE, report()).failure
        wrongs: tuple[Callable[[], object], ...] = (
            lambda: run.started(1),
            lambda: run.plan([], []),
            lambda: run.plan([], [99]),
            lambda: run.plan([PlannedStep("zero", {}, 99)], [failure]),
            lambda: run.record_finding(99, answer()),
            lambda: journal.history(99),
            lambda: journal.plan(99),
            lambda: journal.run_record(99),
        )
        for wrong in wrongs:
            with pytest.raises(JournalError):
                wrong()
        # Nothing of it is there.
        with pytest.raises(JournalError):
            journal.plan(1)


_DIE = """
import os, sys
from tests.support.journals import PAGE, opened, report
from whoseblock.journal import PlannedStep
with opened(sys.argv[1]) as (journal, run):
    failure = run.record_failure("sda", PAGE, report()).failure
    steps = run.plan([PlannedStep("zero", {})] * 3, [failure]).steps
    for step in (steps[0], steps[2]):
        run.started(step.id)
    run.done(steps[2].id)
    print(run.id, *(step.id for step in steps), flush=True)
    sys.stdin.read()
    os._exit(1)
"""


def test_a_step_belongs_to_its_run_while_the_run_lives(journal_url: str) -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", _DIE, journal_url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=CHECKOUT,
    )
    assert other.stdout is not None
    with other, opened(journal_url) as (journal, run):
        theirs, started, planned, done = map(int, other.stdout.readline().split())
        assert journal.is_running(theirs)
        for act in (run.started, run.done, run.verified):
            with pytest.raises(JournalError):
                act(started)
        for step in (started, done):
            # What they did, they are about to verify.
            with pytest.raises(JournalError, match="is being done by run"):
                run.skipped(step, "why")
        run.started(planned)
        other.communicate()
        assert not journal.is_running(theirs)
        (plan,) = journal.unfinished("sda")
        assert [step.state for step in plan.steps] == [State.STARTED, State.STARTED, State.DONE]
        run.failed(done, "not verified")
        run.skipped(done, "why")
        assert journal.unfinished("sdb") == []
        assert run.started(started).number == 2
        for step in (started, planned):
            run.done(step)
            assert len(journal.unfinished()) == 1
            run.verified(step)
        assert journal.unfinished() == []
        assert journal.run_record(theirs).ended is None


def test_a_failure_is_closed_with_its_step(journal_url: str) -> None:
    with opened(journal_url) as (journal, run):
        failure = run.record_failure("sda", PAGE, report()).failure
        step = run.plan([PlannedStep("zero", {}, failure)], [failure]).steps[0].id
        with pytest.raises(JournalError):
            run.verified(step, closes=(failure, "zeroed"))
        assert journal.history(failure).failure.closed is None
        run.started(step)
        run.done(step)
        run.verified(step, closes=(failure, "zeroed"))
        closed = journal.history(failure).failure
        assert (closed.closed_by, closed.closed_because) == (run.id, "zeroed")
        assert closed.closed is not None


def test_whether_a_run_of_another_host_lives_is_unknown(journal_url: str) -> None:
    with opened(journal_url, OTHER) as (journal, run):
        failure = run.record_failure("sda", PAGE, report()).failure
        step = run.plan([PlannedStep("zero", {})], [failure]).steps[0].id
        run.started(step)
        with opened(journal_url) as (here, ours):
            assert here.unfinished() == []
            with pytest.raises(JournalError, match="on other"):
                ours.started(step)
        assert len(journal.unfinished()) == 1
        run.close()
        with opened(journal_url) as (_, ours):
            assert ours.started(step).state is State.STARTED


def test_a_failure_is_found_by_its_range(tmp_path: Path) -> None:
    # Else each of a burst would read all those before it.
    with opened(str(tmp_path / "journal")):
        pass
    query = str(_OPEN.compile(dialect=sqlite.dialect()))
    with closing(sqlite3.connect(tmp_path / "journal")) as connection:
        rows = connection.execute(f"EXPLAIN QUERY PLAN {query}", (1, 0, 512)).fetchall()
    assert "ix_failures_open (host=? AND start=? AND length=?)" in rows[0][-1]


def test_a_file_is_stored_with_its_subvolume(journal_url: str) -> None:
    with opened(journal_url) as (journal, run):
        noted = run.record_failure("sda", PAGE, report())
        rows = (file_row("/a"), file_row("/b", inode=257, subvolume=256), metadata_row())
        run.record_finding(noted.failure, answer(*rows))
        columns = select(owners.c.subvolume, owners.c.inode).order_by(owners.c.number)
        with journal._database.reading() as connection:
            stored = [tuple(row) for row in connection.execute(columns)]
        assert stored == [(0, 131), (256, 257), (None, None)]
        kept = journal.history(noted.failure).findings[0].answer["owners"]
        assert [row.get("subvolume") for row in kept] == [None, 256, None]
