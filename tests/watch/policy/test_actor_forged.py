"""The daemon performs no plan of another program, and passes on no finding of one."""

import contextlib
import json
import sqlite3
from pathlib import Path

from tests.support.journals import opened, report

from whoseblock.fs.base import Answer, Free
from whoseblock.journal import RecordedFailure, State, open_journal
from whoseblock.ranges import ByteRange
from whoseblock.watch.policy.actor import Actor
from whoseblock.watch.policy.rules import Policy, Rule
from whoseblock.watch.store.state import StateFolder

ROW = Free(0, 512)
EXEC = Rule("tell", 1, exec=("/bin/true",))


class NoResponder:
    """Stands for the repair of a device, which no test here may reach."""

    def respond(self, _failure: RecordedFailure, _policy: Policy, _number: int) -> str:
        raise AssertionError


def forge(journal: Path, statement: str) -> None:
    """Change the journal, as another program could."""
    with contextlib.closing(sqlite3.connect(journal)) as database, database:
        database.execute(statement)


def perform(folder: Path, rule: Rule, forged: str) -> dict[str, int]:
    """Plan what a rule says about a failure, forge the journal, and perform what is planned."""
    journal = folder / "journal.sqlite"
    with StateFolder(folder / "state") as state, opened(str(journal)) as (opened_journal, run):
        actor = Actor(opened_journal, run, Policy((rule,)), state, NoResponder())
        failure = run.record_failure("sdzz", ByteRange(0, 512), report()).failure
        run.record_finding(failure, Answer(0, 512, complete=True, notes=(), owners=(ROW,)))
        assert actor.plan(failure, [(rule, [ROW])])
        forge(journal, forged)
        return actor.perform().actions


def test_a_plan_of_another_program_is_not_performed(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    forged = "UPDATE steps SET parameters = replace(parameters, '/bin/true', 'touch MARKER')"
    assert perform(tmp_path, EXEC, forged.replace("MARKER", str(marker))) == {}
    assert not marker.exists()
    with open_journal(str(tmp_path / "journal.sqlite"), write=False) as journal:
        (plan,) = journal.history(1).plans
    assert [step.state for step in plan.steps] == [State.PLANNED]


def test_a_program_reads_only_authentic_owners(tmp_path: Path) -> None:
    read = tmp_path / "read"
    rule = Rule("tell", 1, exec=("/bin/sh", "-c", f"cat > {read}"))
    assert perform(tmp_path, rule, "UPDATE findings SET complete = complete") == {"exec done": 1}
    assert json.loads(read.read_text())["answer"]["start"] == 0
    forged = "UPDATE findings SET answer = replace(answer, '512', '1024')"
    assert perform(tmp_path, rule, forged) == {"exec done": 1}
    assert json.loads(read.read_text())["answer"] == {}
