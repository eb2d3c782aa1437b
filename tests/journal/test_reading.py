"""A file of SQLite that another program has crafted: an error, no crash, no escape sequence."""

import contextlib
import shutil
import sqlite3
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.support.journals import PAGE, answer, file_row, opened, report

from whoseblock.cli.group import cli
from whoseblock.errors import JournalError
from whoseblock.journal import PlannedStep, open_journal

_VALUES = (b"\xff\0", "\x1b]0;x\x07\n")
#: Runs for ever.
_ENDLESS = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT count(*) FROM c"


@pytest.fixture(name="journal")
def _journal(tmp_path: Path) -> Path:
    path = tmp_path / "journal.sqlite"
    with opened(str(path)) as (_, run):
        failure = run.record_failure("sda", PAGE, report()).failure
        run.record_finding(failure, answer(file_row("/a")))
        run.plan([PlannedStep("zero", {}, failure)], [failure])
    return path


def _run(journal: Path, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(journal)) as database, database:
        for statement in statements:
            database.execute(statement)


@pytest.mark.parametrize(
    ("kind", "statements"),
    [
        ("view", ["ALTER TABLE hosts RENAME TO x", f"CREATE VIEW hosts AS {_ENDLESS}"]),
        ("trigger", [f"CREATE TRIGGER x BEFORE INSERT ON runs BEGIN {_ENDLESS}; END"]),
        ("generated column", ["ALTER TABLE hosts ADD x AS (hex(zeroblob(400000000)))"]),
    ],
)
def test_a_journal_that_computes_is_refused(
    journal: Path, kind: str, statements: list[str]
) -> None:
    _run(journal, *statements)
    for write in (False, True):
        with pytest.raises(JournalError, match=f"is not a journal: it has a {kind}"):
            open_journal(str(journal), write=write)


def test_values_of_a_kind_that_the_column_cannot_have(journal: Path, tmp_path: Path) -> None:
    _run(journal, "PRAGMA wal_checkpoint(TRUNCATE)")
    with contextlib.closing(sqlite3.connect(journal)) as database:
        tables = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        columns = [
            (table, column[1])
            for (table,) in tables
            for column in database.execute(f"PRAGMA table_info({table})")
        ]
    assert len(columns) > 60
    folder = tmp_path / "crafted"
    folder.mkdir()
    for table, column in columns:
        # Each pair of commands reads another part of a row.
        for value in _VALUES:
            crafted = folder / f"{table}.{column}"
            shutil.copyfile(journal, crafted)
            with contextlib.closing(sqlite3.connect(crafted)) as database:
                database.execute("PRAGMA ignore_check_constraints = ON")
                database.execute("PRAGMA writable_schema = ON")
                database.execute("UPDATE sqlite_master SET sql = replace(sql, ' NOT NULL', '')")
                database.commit()
            with contextlib.closing(sqlite3.connect(crafted)) as database:
                database.execute("PRAGMA ignore_check_constraints = ON")
                with contextlib.suppress(sqlite3.Error), database:
                    statement = f"UPDATE {table} SET {column} = ?"  # noqa: S608 - names
                    database.execute(statement, (value,))
            for words in ("list", "show 1"):
                done = CliRunner().invoke(
                    cli, ["journal", *words.split(), "--journal", str(crafted)]
                )
                error = done.exception
                assert error is None or isinstance(error, (JournalError, SystemExit)), column
                assert not {"\x1b", "\x07"} & set(done.output), column
            crafted.unlink()
