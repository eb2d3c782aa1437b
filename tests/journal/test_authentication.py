"""Plans, events and findings that this user did not write on this host are shown, not acted on."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from demo.demo import unpack
from sqlalchemy import Connection, inspect, text
from tests.support.journals import PAGE, answer, file_row, opened, report
from tests.support.tools import CHECKOUT

from whoseblock.cli.group import cli
from whoseblock.errors import JournalError
from whoseblock.journal import Host, Limits, Plan, PlannedStep, State, open_journal
from whoseblock.journal.database import Database
from whoseblock.journal.host_key import VARIABLE, read_key
from whoseblock.journal.journal import Journal
from whoseblock.journal.location import locate
from whoseblock.lookup import Lookup, Query
from whoseblock.respond import service
from whoseblock.respond.service import PlanOptions
from whoseblock.target import Target, TargetOptions

OPTIONS = {"applied": True, "target": "/dev/x", "where": {}}
#: What EVENT stands for in the statements here.
EVENT = "INSERT INTO step_events (step, number, state, run, at, detail, mac)"
COPY = """INSERT INTO steps (id, plan, number, kind, failure, parameters)
 SELECT 9, plan, 9, kind, failure, parameters FROM steps WHERE id = 1"""
COPY_EVENTS = """EVENT
 SELECT 9, number, state, run, at, detail, mac FROM step_events WHERE step = 1"""
END = """EVENT
 SELECT step, number + 1, 'STATE', run, at, '{}', MAC FROM step_events
 WHERE step = STEP AND number = LAST"""


def interrupted(url: str, host: Host | None = None) -> Plan:
    """Journal a plan of two steps, of which the first is started and the second planned."""
    with opened(url, host) as (_, run):
        first = run.record_failure("sda", PAGE, report(), identity="serial").failure
        run.record_failure("sdb", PAGE, report())
        run.record_finding(first, answer(file_row("/a")))
        steps = [PlannedStep("exec", {"command": "true"}, first), PlannedStep("zero", {}, first)]
        plan = run.plan(steps, [first], OPTIONS)
        run.started(plan.steps[0].id, {"replacement": "00"})
        return plan


def change(url: str, *statements: str) -> None:
    """Run statements, as a program with all rights on the database could."""
    with Database(locate(url), write=True) as database, database.writing() as connection:
        for statement in statements:
            _run(connection, statement)


def _run(connection: Connection, statement: str) -> None:
    connection.execute(text(statement.replace("EVENT", EVENT).replace(":", r"\:")))


def doubtful(journal: Journal) -> list[int]:
    return [plan.id for plan in journal.doubtful()]


def test_a_plan_of_ours_is_authentic(journal_url: str) -> None:
    plan = interrupted(journal_url)
    assert plan.authentic
    with opened(journal_url) as (journal, run):
        assert [one.id for one in journal.unfinished()] == [plan.id]
        assert journal.has_unfinished()
        assert doubtful(journal) == []
        assert journal.failures_of(plan)[plan.failures[0]].device == "sda"
        run.failed(plan.steps[0].id, "EIO \0\udc80", {"float": 1.5, "number": {2: 1, 10: 2}})
        run.started(plan.steps[0].id)
        run.done(plan.steps[0].id)
        run.verified(plan.steps[0].id, closes=(plan.failures[0], "done"))
        run.skipped(plan.steps[1].id, "not needed")
        assert journal.plan(plan.id).authentic
        assert (journal.unfinished(), doubtful(journal)) == ([], [])
        (finding,) = journal.history(plan.failures[0]).findings
        assert finding.authentic
    with open_journal(journal_url, write=False) as journal:
        assert journal.plan(plan.id).authentic


@pytest.mark.parametrize(
    "statements",
    [
        ['UPDATE plans SET options = \'{"applied":true,"target":"/dev/y"}\''],
        ["UPDATE plans SET at = '2026-01-01 00:00:00.000000'"],
        ['UPDATE steps SET parameters = \'{"command":"id"}\' WHERE number = 0'],
        ["UPDATE steps SET kind = 'restore' WHERE number = 1"],
        ["UPDATE steps SET failure = NULL WHERE number = 1"],
        ["UPDATE steps SET number = 2 WHERE number = 0"],
        ["UPDATE failures SET device = 'sdc'"],
        ["UPDATE failures SET identity = 'other'"],
        ["UPDATE failures SET start = 0"],
        ["UPDATE failures SET length = 512"],
        ["UPDATE plan_failures SET failure = 2"],
        ["INSERT INTO plan_failures VALUES (1, 2)"],
        ['UPDATE step_events SET detail = \'{"replacement":"ff"}\' WHERE number = 1'],
        ["UPDATE step_events SET state = 'failed' WHERE number = 1"],
        ["UPDATE step_events SET mac = NULL WHERE number = 1"],
        ["UPDATE step_events SET mac = NULL"],
        ["DELETE FROM step_events WHERE number = 0 AND step = 1"],
        ["DELETE FROM step_events WHERE step = 2", "DELETE FROM steps WHERE id = 2"],
        ["DELETE FROM step_events WHERE step = 2"],
        ["EVENT SELECT 1, 2, 'failed', run, at, '{}', mac FROM step_events WHERE number = 1"],
        [COPY, COPY_EVENTS],
        [
            "INSERT INTO plans (id, run, at, options) SELECT 9, run, at, options FROM plans",
            "UPDATE plan_failures SET plan = 9",
            "UPDATE steps SET plan = 9",
        ],
    ],
    ids=lambda statements: " ".join(statements)[:60],
)
def test_a_plan_that_was_changed(journal_url: str, statements: list[str]) -> None:
    plan = interrupted(journal_url)
    change(journal_url, *statements)
    with opened(journal_url) as (journal, _):
        assert journal.unfinished() == []
        assert not journal.has_unfinished()
        (forged,) = journal.doubtful()
        assert forged.authentic is False
        with pytest.raises(JournalError, match="plan 1 was written or changed"):
            journal.failures_of(plan)


@pytest.mark.parametrize("state", ["done", "verified", "skipped"])
@pytest.mark.parametrize("mac", ["mac", "NULL"])
def test_a_forged_end_does_not_hide_a_step(journal_url: str, state: str, mac: str) -> None:
    plan = interrupted(journal_url)
    end = END.replace("STATE", state).replace("MAC", mac)
    ends = [
        end.replace("STEP", str(step.id)).replace("LAST", last)
        for step, last in zip(plan.steps, ("1", "0"), strict=True)
    ]
    change(journal_url, *ends)
    with opened(journal_url) as (journal, _):
        assert journal.unfinished() == []
        assert doubtful(journal) == [plan.id]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE steps SET kind = 'exec' WHERE plan = 1",
        END.replace("STEP", "1").replace("LAST", "1").replace("STATE", "verified"),
    ],
)
def test_a_discarded_plan_is_never_carried_out_and_no_longer_reported(
    journal_url: str, statement: str
) -> None:
    forged, good = interrupted(journal_url), interrupted(journal_url)
    change(journal_url, statement.replace("MAC", "NULL"))
    with opened(journal_url) as (journal, run):
        assert doubtful(journal) == [forged.id]
        run.discard(forged.id)
        assert doubtful(journal) == []
        assert [one.id for one in journal.unfinished()] == [good.id]
        after = journal.plan(forged.id)
        assert after.authentic is False
        assert {step.state for step in after.steps} == {State.SKIPPED}
        with pytest.raises(JournalError, match="is not carried out"):
            journal.failures_of(after)
        with pytest.raises(JournalError, match="plan 2 is authentic, and is not discarded"):
            run.discard(good.id)
        with pytest.raises(JournalError, match="has no plan 9"):
            run.discard(9)
    change(journal_url, "UPDATE runs SET uid = uid + 1")
    with (
        opened(journal_url) as (_, run),
        pytest.raises(JournalError, match="by another host or user"),
    ):
        run.discard(good.id)


def test_a_finding_that_was_changed(journal_url: str) -> None:
    plan = interrupted(journal_url)
    change(journal_url, "UPDATE findings SET complete = NOT complete")
    with open_journal(journal_url, write=False) as journal:
        history = journal.history(plan.failures[0])
    assert [one.authentic for one in history.findings] == [False]
    assert [one.authentic for one in history.plans] == [True]


def test_a_plan_of_another_user_or_host(journal_url: str) -> None:
    # Its own key decides; this user neither carries it out nor calls it forged.
    plan = interrupted(journal_url)
    interrupted(journal_url, Host("other", "0" * 32))
    change(journal_url, "UPDATE runs SET uid = uid + 1")
    with opened(journal_url) as (journal, _):
        assert [journal.plan(number).authentic for number in (plan.id, plan.id + 1)] == [None] * 2
        assert journal.unfinished() == []
        assert doubtful(journal) == []
        with pytest.raises(JournalError, match="is not carried out"):
            journal.failures_of(plan)


def test_a_plan_without_our_key(
    journal_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = interrupted(journal_url)
    key = tmp_path / "keys" / "key"
    monkeypatch.setenv(VARIABLE, str(key))
    with open_journal(journal_url, write=False) as journal:
        assert journal.plan(plan.id).authentic is None
    assert not key.exists()
    with opened(journal_url) as (journal, _):
        assert journal.plan(plan.id).authentic is False
        assert journal.unfinished() == []
        assert doubtful(journal) == [plan.id]
    assert key.stat().st_mode == 0o100600


def test_the_number_of_plans_read_at_a_time_changes_nothing(journal_url: str) -> None:
    plans = [interrupted(journal_url).id for _ in range(5)]
    change(journal_url, "UPDATE steps SET kind = 'exec'")
    with open_journal(journal_url, limits=Limits(batch=3)) as journal:
        assert sorted(doubtful(journal)) == plans


def test_a_journal_of_version_3_is_upgraded(journal_url: str) -> None:
    plan = interrupted(journal_url)
    before = _stored(journal_url)
    change(
        journal_url,
        *(f"ALTER TABLE {table} DROP COLUMN mac" for table in ("step_events", "findings")),
        "UPDATE journal_version SET version_num = 3",
    )
    with pytest.raises(JournalError, match="made by an older whoseblock") as refused:
        open_journal(journal_url, write=False)
    assert "a command that writes to it upgrades it" in refused.value.hint
    with opened(journal_url) as (journal, run):
        old = journal.plan(plan.id)
        assert (old.authentic, old.steps[0].kind) == (False, "exec")
        assert journal.unfinished() == []
        assert doubtful(journal) == [plan.id]
        (finding,) = journal.history(plan.failures[0]).findings
        assert finding.authentic is False
        new = run.plan([PlannedStep("zero", {})], plan.failures, OPTIONS)
        assert [one.id for one in journal.unfinished()] == [new.id]
        # Finished steps from before have no codes, and hide nothing.
        for step in old.steps:
            run.skipped(step.id, "planned again")
        assert doubtful(journal) == []
    assert _stored(journal_url) == before


def _stored(url: str) -> list[str]:
    """Return the columns of all tables, in order."""
    with Database(locate(url), write=False) as database, database.reading() as connection:
        tables = inspect(connection)
        return [
            f"{table}.{column['name']}"
            for table in ("step_events", "findings", "plans", "steps")
            for column in tables.get_columns(table)
        ]


# ------------------------------------------------------------------ the command


def planned(journal: Path, image: Path, command: str) -> Plan:
    """Plan to run a command, as `respond --exec --apply` does before it is interrupted."""
    where = TargetOptions()
    with (
        opened(str(journal)) as (_, run),
        Target(str(image), where) as target,
        Lookup(target.open_leaf) as finder,
    ):
        assert target.layer is not None
        asked = [Query(1257472, 4096, target.layer)]
        found = list(service.plan(target, finder, asked, PlanOptions(command=command)))
        saved = service.save(
            run, found, PlanOptions(command=command), target=str(image), where=where, applied=True
        )
        assert saved.plan.authentic
        return saved.plan


def _resume(journal: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "whoseblock", "respond", "--resume", "--journal", journal, *words],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )


def _forge_command(journal: Path, marker: Path) -> None:
    kept = json.dumps({"command": f"touch {marker}"})
    change(str(journal), "UPDATE steps SET parameters = 'KEPT'".replace("KEPT", kept))


def _forge_target(journal: Path, marker: Path) -> None:
    statement = "UPDATE plans SET options = replace(options, 'disk.img', 'MARKER')"
    change(str(journal), statement.replace("MARKER", str(marker)))


def _forge_end(journal: Path, _marker: Path) -> None:
    change(str(journal), "EVENT SELECT step, 1, 'skipped', run, at, '{}', mac FROM step_events")


@pytest.mark.parametrize("forge", [_forge_command, _forge_target, _forge_end])
def test_a_forged_plan_is_reported_and_not_resumed(
    tmp_path: Path, forge: Callable[[Path, Path], None]
) -> None:
    image, journal, marker = tmp_path / "disk.img", tmp_path / "j", tmp_path / "marker"
    unpack(image)
    plan = planned(journal, image, f"touch {tmp_path / 'ours'}")
    forge(journal, marker)
    done = _resume(journal)
    assert not marker.exists()
    assert not (tmp_path / "ours").exists()
    assert done.returncode == 14
    assert f"plan {plan.id} was written or changed by another program" in done.stderr
    elsewhere = _resume(journal, str(tmp_path / "elsewhere.img"))
    assert (elsewhere.returncode, elsewhere.stderr) == (0, "no interrupted steps\n")
    with opened(str(journal)) as (opened_journal, run):
        forged = opened_journal.plan(plan.id)
        assert forged.authentic is False
        with pytest.raises(JournalError, match="is not carried out"):
            next(service.resume(opened_journal, run, forged))
        assert opened_journal.plan(plan.id).steps[0].state in (State.PLANNED, State.SKIPPED)
    assert "hint: whoseblock journal discard 1 shows and drops it" in done.stderr
    words = [sys.executable, "-m", "whoseblock", "journal", "show", "1", "--journal", str(journal)]
    shown = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "not authentic, never carried out" in shown.stdout
    # Without a confirmation nothing changes; after it, the plan is reported no more.
    words = ["journal", "discard", "1", "--journal", str(journal)]
    asked = CliRunner().invoke(cli, words)
    assert (asked.exit_code, "plan 1 of " in asked.stdout) == (2, True)
    assert _resume(journal).returncode == 14
    dropped = CliRunner().invoke(cli, [*words, "--yes"])
    assert dropped.stderr == "plan 1 discarded: it is no longer reported\n"
    after = _resume(journal)
    assert (after.returncode, after.stderr) == (0, "no interrupted steps\n")
    assert not marker.exists()
    assert not (tmp_path / "ours").exists()


def test_many_forged_plans_are_counted(tmp_path: Path) -> None:
    image, journal = tmp_path / "disk.img", tmp_path / "j"
    unpack(image)
    for _ in range(10):
        planned(journal, image, "true")
    change(str(journal), "UPDATE steps SET kind = 'exec '")
    done = _resume(journal)
    assert "10 plans were written or changed by another program" in done.stderr
    assert "(1, 2, 3, 4, 5, 6, 7, 8, …)" in done.stderr


# ------------------------------------------------------------------ the key


@pytest.fixture(name="key")
def _key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    key = tmp_path / "state" / "key"
    monkeypatch.setenv(VARIABLE, str(key))
    return key


def test_the_key_is_made_once_and_kept_secret(key: Path) -> None:
    assert read_key(make=False) is None
    made = read_key(make=True)
    assert made == key.read_bytes() == read_key(make=False)
    assert len(made) == 32
    assert (key.stat().st_mode, key.parent.stat().st_mode) == (0o100600, 0o040700)
    assert [path.name for path in key.parent.iterdir()] == ["key"]


def test_processes_make_one_key_together(key: Path) -> None:
    program = (
        "import sys; from whoseblock.journal.host_key import read_key; print(flush=True);"
        "sys.stdin.readline(); print(read_key(make=True).hex())"
    )
    pipe = subprocess.PIPE
    together = [
        subprocess.Popen([sys.executable, "-c", program], stdin=pipe, stdout=pipe, text=True)
        for _ in range(3)
    ]
    for process in together:
        assert process.stdout is not None
        process.stdout.readline()
    for process in together:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    keys = {process.communicate()[0].strip() for process in together}
    assert keys == {key.read_bytes().hex()}


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_key_that_others_may_read_or_write_is_refused(key: Path, mode: int) -> None:
    read_key(make=True)
    key.chmod(mode)
    for make in (True, False):
        with pytest.raises(JournalError, match="is not secret") as caught:
            read_key(make=make)
        assert f"rm {key}" in caught.value.hint


def test_a_key_that_cannot_be_used(key: Path) -> None:
    key.parent.mkdir(mode=0o700)
    key.touch(0o600)
    with pytest.raises(JournalError, match="it has 0 bytes, not 32"):
        read_key(make=True)
    key.unlink()
    key.mkdir()
    with pytest.raises(JournalError, match="is not a regular file"):
        read_key(make=True)
    key.rmdir()
    key.parent.chmod(0o777)
    with pytest.raises(JournalError, match="other users may write to"):
        read_key(make=True)
    key.parent.rmdir()
    key.parent.touch()
    with pytest.raises(JournalError, match="cannot be used: Not a directory") as caught:
        read_key(make=True)
    assert f"${VARIABLE}" in caught.value.hint


def test_nothing_is_planned_without_a_key(key: Path, tmp_path: Path) -> None:
    key.parent.touch()
    with opened(str(tmp_path / "journal.sqlite")) as (journal, run):
        failure = run.record_failure("sda", PAGE, report()).failure
        with pytest.raises(JournalError, match="cannot be used"):
            run.plan([PlannedStep("zero", {})], [failure])
        assert journal.history(failure).plans == ()
