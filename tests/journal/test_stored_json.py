"""Rows that another program wrote are shown as far as they can be, and stop no listing."""

import pytest
from click.testing import CliRunner
from sqlalchemy import text
from tests.support.journals import PAGE, answer, file_row, opened, report

from whoseblock.cli.group import cli
from whoseblock.journal import PlannedStep, open_journal
from whoseblock.journal.database import Database
from whoseblock.journal.location import locate

OBJECTS = [
    "x",
    "[]",
    "1",
    '{"owners":1}',
    '{"start":"0","length":0,"owners":[{"paths":1}]}',
    '{"number":1' + "0" * 30 + "}",
    '{"number":1' + "0" * 5000 + "}",
    "[" * 100_000,
]
COLUMNS = {
    "runs": ["command"],
    "reports": ["detail"],
    "findings": ["notes", "answer"],
    "plans": ["options"],
    "steps": ["parameters"],
    "step_events": ["detail"],
}


@pytest.mark.parametrize("value", OBJECTS, ids=lambda value: value[:30])
def test_values_that_are_no_json_or_of_another_kind(journal_url: str, value: str) -> None:
    with opened(journal_url) as (_, run):
        failure = run.record_failure("sda", PAGE, report()).failure
        run.record_finding(failure, answer(file_row("/a")))
        run.plan([PlannedStep("zero", {}, failure)], [failure])
    with Database(locate(journal_url), write=True) as database, database.writing() as connection:
        for table, columns in COLUMNS.items():
            for column in columns:
                statement = f"UPDATE {table} SET {column} = :value"  # noqa: S608 - names
                connection.execute(text(statement), {"value": value})
        connection.execute(
            text("INSERT INTO steps (plan, number, kind, parameters) VALUES (1, 9, 'x', '{}')")
        )
        connection.execute(text("UPDATE runs SET process = 'x'"))
        if connection.dialect.name == "postgresql":
            connection.execute(text("UPDATE reports SET at = 'infinity'"))
    with open_journal(journal_url, write=False) as journal:
        (history,) = journal.histories()
        assert [one.authentic for one in history.plans] == [False]
        assert [one.authentic for one in history.findings] == [False]
        assert journal.unfinished() == []
        assert len(list(journal.failures())) == 1
    for words in (
        "list",
        "list --json",
        "show 1",
        "show 1 --json",
        "export",
        "export --format csv",
    ):
        done = CliRunner().invoke(cli, ["journal", *words.split(), "--journal", journal_url])
        assert (done.exit_code, done.stderr, done.exception) == (0, "", None), words
