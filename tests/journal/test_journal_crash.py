"""Writers at the same time lose and double nothing; a killed one loses nothing that it said."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from tests.support.journals import PAGE, opened, report
from tests.support.postgresql_server import Postgres
from tests.support.tools import CHECKOUT

from whoseblock.journal import Filter, PlannedStep, State, open_journal

WRITER = [sys.executable, "-m", "tests.support.journals"]
COUNT = 40


def write_together(url: str, hosts: list[str]) -> None:
    """Start a process for each name of a host; all write at the same time from the start."""
    writers = [
        subprocess.Popen([*WRITER, "write", url, host, str(COUNT)], cwd=CHECKOUT) for host in hosts
    ]
    try:
        codes = [writer.wait(120) for writer in writers]
    finally:
        for writer in writers:
            writer.kill()
    assert codes == [0] * len(hosts)


def check_all_there(url: str, hosts: list[str]) -> None:
    """Check that every writer's reports and steps are there once, of one failure for each page."""
    with open_journal(url, write=False) as journal:
        histories = list(journal.histories())
        for host, writers in Counter(hosts).items():
            mine = [one for one in histories if one.failure.host == host]
            assert sorted(one.failure.start for one in mine) == [4096 * n for n in range(COUNT)]
            assert {len(one.reports) for one in mine} == {writers}
            assert {len({report.source for report in one.reports}) for one in mine} == {writers}
            assert {len(one.findings) for one in mine} == {1}
            assert {len(one.plans) for one in mine} == {writers}
            found = journal.failures(Filter(file=f"/{host}/7"))
            assert [one.failure.start for one in found] == [4096 * 7]
    for one in histories:
        for plan in one.plans:
            (step,) = plan.steps
            assert [event.state for event in step.events] == "planned started done verified".split()
            assert {event.run for event in step.events} == {plan.run}


def test_hosts_write_one_postgresql_journal_at_the_same_time(postgres: Postgres) -> None:
    url, hosts = postgres.new_database(), ["one", "two", "two"]
    write_together(url, hosts)
    check_all_there(url, hosts)


def test_processes_write_one_sqlite_journal_at_the_same_time(tmp_path: Path) -> None:
    url, hosts = str(tmp_path / "new" / "journal.sqlite"), ["one", "two", "two"]
    write_together(url, hosts)
    check_all_there(url, hosts)


def test_only_one_of_two_runs_gets_a_step(journal_url: str) -> None:
    with opened(journal_url) as (journal, run):
        failure = run.record_failure("sda", PAGE, report()).failure
        steps = run.plan([PlannedStep("zero", {})] * 20, [failure]).steps
        code = (
            "import sys; from tests.support.journals import opened\n"
            "from whoseblock.errors import JournalError\n"
            "with opened(sys.argv[1]) as (journal, run):\n"
            "    print(flush=True); sys.stdin.readline()\n"
            "    for step in map(int, sys.argv[2:]):\n"
            "        try: print(run.started(step).run, step, flush=True)\n"
            "        except JournalError: pass\n"
            "    print(flush=True); sys.stdin.readline()\n"
        )
        words = [sys.executable, "-c", code, journal_url, *(str(step.id) for step in steps)]
        pipe = subprocess.PIPE
        racers = [
            subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True, cwd=CHECKOUT)
            for _ in range(2)
        ]
        _lines_of(racers)
        for racer in racers:
            _say(racer)
        won = _lines_of(racers)
        for racer in racers:
            _say(racer)
            racer.communicate()
        after = journal.history(failure).plans[0].steps
        taken = {step.id: step.events[1].run for step in after}
    assert sorted(won) == sorted(f"{run} {step}" for step, run in taken.items())
    assert {step.state for step in after} == {State.STARTED}
    assert {step.attempts for step in after} == {1}


def _say(racer: "subprocess.Popen[str]") -> None:
    assert racer.stdin is not None
    racer.stdin.write("\n")
    racer.stdin.flush()


def _lines_of(racers: "list[subprocess.Popen[str]]") -> list[str]:
    """Return the output of each up to an empty line."""
    lines = []
    for racer in racers:
        assert racer.stdout is not None
        lines += [line.strip() for line in iter(racer.stdout.readline, "\n")]
    return lines


@pytest.mark.parametrize("seed", [1])
def test_confirmed_writes_of_a_killed_writer_are_stored(tmp_path: Path, seed: int) -> None:
    file = tmp_path / "journal.sqlite"
    done = subprocess.run(
        [*WRITER, "killed", file, "100", str(seed)],
        capture_output=True,
        text=True,
        cwd=CHECKOUT,
        check=True,
    )
    said = [line.split() for line in done.stdout.splitlines()]
    assert len(said) > 200
    with open_journal(str(file)) as journal:
        histories = {one.failure.id: one for one in journal.histories()}
    steps = {
        step.id: [event.state for event in step.events]
        for one in histories.values()
        for plan in one.plans
        for step in plan.steps
    }
    order = "planned started done verified".split()
    told: dict[int, int] = {}
    for what, number in said:
        if what == "failure":
            assert int(number) in histories
        elif what == "closed":
            assert histories[int(number)].failure.closed is not None
        else:
            assert what in steps[int(number)]
            told[int(number)] = order.index(what) + 1
    for step, states in steps.items():
        # What is there more than was said is at most what was being said.
        assert states == order[: len(states)]
        assert 0 <= len(states) - told.get(step, 0) <= 1
