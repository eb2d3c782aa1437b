"""Opening makes the tables of one version, once and as a whole; others are refused unchanged."""

import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import Connection, event, func, select, text
from sqlalchemy import table as sqltable
from tests.support.journals import PAGE, answer, file_row, opened, report
from tests.support.postgresql_server import Postgres
from tests.support.tools import CHECKOUT

from whoseblock.errors import JournalError
from whoseblock.journal import open_journal, schema, versions
from whoseblock.journal.database import Database
from whoseblock.journal.location import locate

TABLES = Path(__file__).with_name("tables")


def statements(database: Database) -> list[list[str]]:
    """Read how the database made its tables, in pieces whose order has no meaning."""
    queries = {
        "sqlite": "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL",
        "postgresql": "SELECT c.relname || ' ' || pg_get_constraintdef(o.oid) || o.conname"
        " FROM pg_constraint o JOIN pg_class c ON c.oid = o.conrelid"
        " WHERE connamespace = current_schema()::regnamespace"
        " UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = current_schema()"
        " UNION ALL SELECT table_name || '.' || column_name || ' ' || data_type || ' '"
        "   || coalesce(character_maximum_length, 0) || ' ' || is_nullable || ' '"
        "   || coalesce(column_default, '')"
        " FROM information_schema.columns WHERE table_schema = current_schema()",
    }
    with database.reading() as connection:
        found = connection.scalars(text(queries[connection.dialect.name]))
        return sorted(sorted("".join(one.split()).replace(")", "").split(",")) for one in found)


def count_of(database: Database, table: str) -> int:
    with database.reading() as connection:
        return int(connection.scalar(select(func.count()).select_from(sqltable(table))) or 0)


def test_the_tables_match_their_version(journal_url: str) -> None:
    # Fails when the schema changes: it needs another VERSION then, and another file of tables.
    with open_journal(journal_url):
        pass
    with Database(locate(journal_url), write=False) as database:
        made = "\n".join(" , ".join(pieces) for pieces in statements(database)) + "\n"
        kind = "sqlite" if database.location.file is not None else "postgresql"
        with database.reading() as connection:
            stored = connection.scalars(text("SELECT version_num FROM journal_version")).all()
    assert list(stored) == [schema.VERSION]
    assert made == (TABLES / f"{schema.VERSION}.{kind}.txt").read_text()


@pytest.mark.parametrize("step", [-1, 1])
def test_a_journal_of_another_version_is_refused_and_not_changed(
    journal_url: str, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(journal_url) as (journal, run):
        noted = run.record_failure("sda", PAGE, report())
        run.record_finding(noted.failure, answer(file_row("/a")))
    with open_journal(journal_url, write=False) as journal:
        before = journal.history(noted.failure)
    with Database(locate(journal_url), write=False) as database:
        tables = statements(database)
    with monkeypatch.context() as patch:
        patch.setattr(versions, "VERSION", schema.VERSION + step)
        age = "newer" if step < 0 else "older"
        for write in (True, False):
            with pytest.raises(JournalError, match=f"made by an? {age} whoseblock") as refused:
                open_journal(journal_url, write=write)
            assert refused.value.exit_code == 13
            assert "--journal" in refused.value.hint
    for write in (True, False):
        with open_journal(journal_url, write=write) as journal:
            assert journal.history(noted.failure) == before
    with Database(locate(journal_url), write=False) as database:
        assert statements(database) == tables


def test_a_journal_of_the_first_version_is_refused(journal_url: str) -> None:
    # That one stored its version as a text.
    with (
        Database(locate(journal_url), write=True) as database,
        database.writing() as connection,
    ):
        connection.execute(text("CREATE TABLE journal_version (version_num VARCHAR(32) NOT NULL)"))
        connection.execute(text("CREATE TABLE hosts (id INTEGER)"))
        connection.execute(text("INSERT INTO journal_version VALUES ('0001')"))
    for write in (True, False):
        with pytest.raises(JournalError, match=r"an older whoseblock \(version 1 of its tables"):
            open_journal(journal_url, write=write)
    with Database(locate(journal_url), write=False) as database:
        assert count_of(database, "hosts") == 0


def test_making_the_tables_fails_as_a_whole(journal_url: str) -> None:
    def fail(_target: object, connection: Connection, **_options: object) -> None:
        connection.execute(text("DROP TABLE nothing"))

    event.listen(schema.step_events, "after_create", fail)
    try:
        with pytest.raises(JournalError, match="nothing"):
            open_journal(journal_url)
    finally:
        event.remove(schema.step_events, "after_create", fail)
    with Database(locate(journal_url), write=True) as database:
        assert statements(database) == []
    with pytest.raises(JournalError, match="there is no journal yet"):
        open_journal(journal_url, write=False)
    with open_journal(journal_url) as journal:
        assert list(journal.failures()) == []


def test_foreign_tables_on_a_server_are_not_used(postgres: Postgres) -> None:
    url = postgres.new_database()
    with Database(locate(url), write=True) as database, database.writing() as connection:
        connection.execute(text("CREATE TABLE failures (name TEXT)"))
    with pytest.raises(JournalError, match="failures"):
        open_journal(url)
    with Database(locate(url), write=False) as database:
        assert count_of(database, "failures") == 0
        assert [one for one in statements(database) if "journal_version" in str(one)] == []


_OPEN = """
import sys
from whoseblock.journal import open_journal
print(flush=True)
sys.stdin.readline()
with open_journal(sys.argv[1]) as journal:
    assert list(journal.failures()) == []
print("alembic" in sys.modules)
"""


def test_processes_make_one_journal_together(journal_url: str) -> None:
    words, pipe = [sys.executable, "-c", _OPEN, journal_url], subprocess.PIPE
    together = [
        subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True, cwd=CHECKOUT) for _ in range(3)
    ]
    for process in together:
        assert process.stdout is not None
        process.stdout.readline()
    for process in together:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in together:
        process.communicate()
        assert process.returncode == 0
    # The tables and their version are there once.
    with Database(locate(journal_url), write=False) as database:
        assert count_of(database, "journal_version") == 1
    done = subprocess.run(words, input="\n", capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
