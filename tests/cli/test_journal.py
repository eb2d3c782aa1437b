"""``whoseblock journal`` as a person or a script meets it."""

import csv
import io
import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.support.commands import whoseblock as run
from tests.support.journals import PAGE, answer, file_row, metadata_row, opened, report

from whoseblock.cli.group import cli
from whoseblock.cli.journal import _moment
from whoseblock.errors import JournalError
from whoseblock.journal import Host, NewReport, PlannedStep
from whoseblock.ranges import ByteRange

NASTY = "/=\udc80\n\x1b[31m"


def fill(url: str) -> None:
    """Journal three failures."""
    with opened(url, Host("other\x1b", "0" * 32)) as (_, other):
        long_ago = NewReport(source="person", at=datetime(2020, 4, 7, tzinfo=UTC))
        other.record_failure("sda", ByteRange(0, 512), long_ago)
    with opened(url) as (_, ours):
        second = ours.record_failure("pmem0", PAGE, report("dmesg")).failure
        ours.record_finding(second, answer(file_row(NASTY, "/b"), metadata_row()))
        detail = {"name": NASTY}
        steps = ours.plan([PlannedStep("zero", detail), PlannedStep("\x1b", {})], [second]).steps
        ours.started(steps[0].id)
        ours.failed(steps[0].id, NASTY)
        third = ours.record_failure("pmem1", PAGE, report("dmesg")).failure
        ours.record_finding(third, answer(complete=False, notes=("a note",)))
        ours.close_failure(third, "free:\x1b")


@pytest.fixture
def url(journal_url: str) -> str:
    """Provide a journal with the three failures."""
    fill(journal_url)
    return journal_url


def journal(*words: str, error: str = "") -> str:
    done = CliRunner().invoke(cli, ["journal", *words], catch_exceptions=False)
    assert (done.exit_code, done.stderr) == (0, error)
    return done.stdout_bytes.decode()


def test_show_of_a_run_that_has_not_ended(tmp_path: Path) -> None:
    file = str(tmp_path / "journal.sqlite")
    with opened(file) as (_, ours):
        number = ours.record_failure("pmem0", PAGE, report("dmesg")).failure
        shown = journal("show", str(number), "--journal", file)
        assert shown.splitlines()[-1].split(", ")[0].endswith("Z still running")
    with opened(file, Host("other")) as (_, other):
        number = other.record_failure("sda", PAGE, report("dmesg")).failure
        # It may have been killed, which cannot be seen from here.
        assert "Z end not journaled so far, " in journal("show", str(number), "--journal", file)
    if not (child := os.fork()):
        with opened(file) as (_, killed):
            number = killed.record_failure("sdb", PAGE, report("dmesg")).failure
            os._exit(number)
    number = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert "Z its end was not journaled, " in journal("show", str(number), "--journal", file)


def test_list(url: str) -> None:
    headings, first, second, third = journal("list", "--journal", url).splitlines()
    assert headings.split() == "ID TIME HOST DEVICE RANGE STATE OWNERS PATH".split()
    assert first.split()[2:] == r"other\x1b sda 0+512 no plan not looked up".split()
    assert "  1 planned, 1 failed  1 file, 1 metadata  /=\\x80\\n\\x1b[31m  (and 1 more)" in second
    assert re.search(r"\d  closed +1 free", third)
    assert third.endswith("1 free, incomplete")
    lines = [json.loads(line) for line in journal("list", "--journal", url, "--json").splitlines()]
    assert [one["failure"]["start"] for one in lines] == [0, PAGE.start, PAGE.start]
    assert lines[1]["path"] == NASTY
    assert lines[1]["states"] == {"planned": 1, "failed": 1}


@pytest.mark.parametrize(
    ("words", "devices"),
    [
        (["--device", "/dev/pmem0"], ["pmem0"]),
        (["--file", "/b"], ["pmem0"]),
        (["--file", NASTY], ["pmem0"]),
        (["--file", "/c"], []),
        (["--since", "2h"], ["pmem0", "pmem1"]),
        (["--until", "1w"], ["sda"]),
        (["--since", "2020-04-07T00:00:00Z", "--until", "2020-04-07T00:00:01+00:00"], ["sda"]),
        (["--state", "failed"], ["pmem0"]),
        (["--state", "verified"], []),
        (["--host", "other\x1b"], ["sda"]),
        (["--open"], ["sda", "pmem0"]),
    ],
)
def test_filters(tmp_path: Path, words: list[str], devices: list[str]) -> None:
    file = str(tmp_path / "journal.sqlite")
    fill(file)
    error = "" if devices else f"whoseblock: no failures match {' '.join(words)}\n"
    for verb in (["list", "--json"], ["export"]):
        lines = journal(*verb, *words, "--journal", file, error=error).splitlines()
        assert [json.loads(line)["failure"]["device"] for line in lines] == devices


def test_a_search_without_result_is_reported(tmp_path: Path) -> None:
    file = str(tmp_path / "journal.sqlite")
    fill(file)
    words = ["--file", "/\x1b", "--until", "2026-11-25T00:00:00Z", "--host", "x", "--open"]
    shown = r"--file /\x1b --until 2026-11-25T00:00:00Z --host x --open"
    for verb in ("list", "export"):
        error = f"whoseblock: no failures match {shown}\n"
        assert journal(verb, *words, "--journal", file, error=error) == ""


def test_show(url: str) -> None:
    shown = journal("show", "2", "--journal", url)
    assert shown.isascii()
    assert all(line.isprintable() for line in shown.splitlines())
    assert shown.startswith("failure 2: 1257472+4096 of pmem0\n")
    for piece in (
        "reported",
        "run 2, dmesg",
        "inodes 128 to 191",
        r"/=\x80\n\x1b[31m",
        r'step 1: zero: failed  {"name": "/=\udc80\n\u001b[31m"}',
        "started   run 2",
        'failed    run 2  {"because":',
        r"step 2: \x1b: planned",
        "whoseblock 1.2.3: a test",
    ):
        assert piece in shown
    assert r"run 2: free:\x1b" in journal("show", "3", "--journal", url)
    told = json.loads(journal("show", "2", "--json", "--journal", url))
    assert told == json.loads(journal("export", "--file", "/b", "--journal", url))
    states = [[event["state"] for event in step["events"]] for step in told["plans"][0]["steps"]]
    assert states == [["planned", "started", "failed"], ["planned"]]


def test_steps_of_dry_runs_are_told_from_those_to_be_taken(tmp_path: Path) -> None:
    file = str(tmp_path / "journal.sqlite")
    with opened(file) as (_, run):
        failure = run.record_failure("pmem0", PAGE, report()).failure
        steps = [run.plan([PlannedStep("zero", {}, failure)], [failure]).steps[0] for _ in "ab"]
    (line,) = journal("list", "--journal", file).splitlines()[1:]
    assert "  1 planned  " in line
    shown = journal("show", str(failure), "--journal", file)
    assert "step 1: zero of failure 1: planned, not taken: a later plan replaced it" in shown
    assert "step 2: zero of failure 1: planned\n" in shown
    with opened(file) as (_, run):
        run.started(steps[1].id)
        run.done(steps[1].id)
        run.verified(steps[1].id, closes=(failure, "healed"))
    (line,) = journal("list", "--journal", file).splitlines()[1:]
    assert "  closed, 1 verified  " in line
    shown = journal("show", str(failure), "--journal", file)
    assert "step 1: zero of failure 1: planned, not taken: the failure is closed" in shown
    (row,) = csv.DictReader(io.StringIO(journal("export", "--format", "csv", "--journal", file)))
    assert row["states"] == "verified=1"


def test_csv_is_safe_in_a_spreadsheet(url: str) -> None:
    text = journal("export", "--format", "csv", "--journal", url)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == len(text.splitlines()) - 1 == 4
    assert text.isascii()
    assert [row["device"] for row in rows] == ["sda", "pmem0", "pmem0", "pmem1"]
    assert rows[1]["path"] == r"/=\x80\n\x1b[31m"
    assert rows[1]["other_paths"] == "/b"
    assert rows[1]["states"] == "failed=1 planned=1"
    assert rows[2]["what"] == "inodes"
    assert [row["kind"] for row in rows] == ["", "file", "metadata", "free"]
    assert rows[3]["closed"]


def test_cells_are_no_formulas(tmp_path: Path) -> None:
    file = str(tmp_path / "journal.sqlite")
    with opened(file, Host("=1+1")) as (_, ours):
        ours.record_failure("@sum", PAGE, report(), identity="+1", target="-1")
    text = journal("export", "--format", "csv", "--journal", file)
    (row,) = csv.DictReader(io.StringIO(text))
    cells = (row[name] for name in ("host", "device", "identity", "target"))
    assert list(cells) == ["'=1+1", "'@sum", "'+1", "'-1"]


@pytest.mark.parametrize(
    "words",
    [["list"], ["list", "--json"], ["show", "1"], ["export"], ["export", "--format", "csv"]],
)
def test_a_missing_journal_is_an_error(tmp_path: Path, words: list[str]) -> None:
    file = tmp_path / "none" / "journal.sqlite"
    done = run("journal", *words, "--journal", file)
    assert done.returncode == JournalError.exit_code
    assert done.stdout == ""
    sentence, hint = done.stderr.splitlines()
    assert sentence == f"whoseblock: there is no journal yet at '{file}'"
    assert hint.startswith("hint: ")
    assert not file.parent.exists()


def test_a_missing_failure_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "journal.sqlite"
    with opened(str(file)):
        pass
    error = "whoseblock: the journal has no failures\n"
    assert journal("list", "--journal", str(file), error=error) == ""
    headings = journal("export", "--format", "csv", "--journal", str(file), error=error)
    assert headings.startswith("id,")
    done = run("journal", "show", "1", "--journal", file)
    assert (done.returncode, done.stdout) == (JournalError.exit_code, "")
    assert "has no failure 1" in done.stderr
    assert run("journal", "show", "x", "--journal", file).returncode == 2
    assert run("journal", "list", "--since", "tomorrow", "--journal", file).returncode == 2


def test_the_environment_names_the_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "journal.sqlite"
    with opened(str(file)) as (_, ours):
        ours.record_failure("sda", PAGE, report())
    monkeypatch.setenv("WHOSEBLOCK_JOURNAL", str(file))
    assert "sda" in journal("list")


def test_help_has_examples() -> None:
    for verb in ("list", "show", "export"):
        assert f"whoseblock journal {verb}" in run("journal", verb, "--help").stdout


def test_moments() -> None:
    before = datetime.now(UTC)
    assert abs(_moment("90m") - (before - timedelta(minutes=90))) < timedelta(minutes=1)
    assert _moment("2026-11-25T18:00:00+01:00") == datetime(2026, 11, 25, 17, tzinfo=UTC)
    assert _moment("2026-11-25") == datetime(2026, 11, 25).astimezone()


def test_lookup_loads_no_database() -> None:
    code = (
        "import sys; from whoseblock.cli import main\n"
        "try: main()\n"
        "finally: print({'sqlalchemy', 'alembic', 'sqlite3'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "lookup", os.devnull, "0"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr.splitlines()[-1] == "set()"
