"""Migrations make the tables that the code knows, keep what is there, and are done once."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text
from tests.support.journals import PAGE, answer, file_row, opened, report
from tests.support.postgres import Postgres
from tests.support.tools import CHECKOUT

from whoseblock.errors import JournalError
from whoseblock.journal import open_journal, versions
from whoseblock.journal.database import Database
from whoseblock.journal.places import place_of
from whoseblock.journal.schema import METADATA, VERSION_TABLE

SECOND = '''"""A revision of the tests."""
import sqlalchemy as sa
from alembic import op
revision = "0002"
down_revision = "0001"
def upgrade() -> None:
    op.add_column("failures", sa.Column("colour", sa.Text(), server_default="blue"))
    op.create_table("more", sa.Column("id", sa.Integer(), primary_key=True))
    {}
'''


def statements(database: Database) -> list[list[str]]:
    """Give what the database says of how its tables were made, in pieces whose order is nothing."""
    queries = {
        "sqlite": "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE :version",
        "postgresql": "SELECT c.relname || ' ' || pg_get_constraintdef(o.oid) || o.conname"
        " FROM pg_constraint o JOIN pg_class c ON c.oid = o.conrelid"
        " WHERE connamespace = current_schema()::regnamespace AND c.relname NOT LIKE :version"
        " UNION ALL SELECT indexdef FROM pg_indexes"
        " WHERE schemaname = current_schema() AND tablename NOT LIKE :version",
    }
    with database.reading() as connection:
        query = text(queries[connection.dialect.name])
        found = connection.scalars(query, {"version": f"%{VERSION_TABLE}%"})
        return sorted(sorted("".join(one.split()).replace(")", "").split(",")) for one in found)


def test_migrations_make_what_the_code_knows(journal_url: str, postgres: Postgres) -> None:
    with open_journal(journal_url):
        pass
    sqlite = not journal_url.startswith("postgresql")
    other = f"{journal_url}.other" if sqlite else postgres.new_database()
    with (
        Database(place_of(journal_url), write=True) as migrated,
        Database(place_of(other), write=True) as made,
    ):
        with migrated.reading() as connection:
            options = {"version_table": VERSION_TABLE, "compare_server_default": True}
            context = MigrationContext.configure(connection, opts=options)
            assert compare_metadata(context, METADATA) == []
        with made.writing() as connection:
            METADATA.create_all(connection)
        # Conditions of indexes and checks, which alembic does not compare.
        assert statements(migrated) == statements(made)


def later(tmp_path: Path, patch: pytest.MonkeyPatch) -> Path:
    """Be a later whoseblock with one revision more; give the script of that."""
    folder = tmp_path / "migrations"
    shutil.copytree(versions.MIGRATIONS, folder)
    script = folder / "versions" / "r0002.py"
    script.write_text(SECOND.format("pass"))
    patch.setattr(versions, "MIGRATIONS", folder)
    patch.setattr(versions, "REVISION", "0002")
    return script


def test_an_older_journal_is_brought_up_to_date(
    journal_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(journal_url) as (journal, run):
        noted = run.record_failure("sda", PAGE, report())
        run.record_finding(noted.failure, answer(file_row("/a")))
    with open_journal(journal_url, write=False) as journal:
        before = journal.history(noted.failure)
    with monkeypatch.context() as patch:
        script = later(tmp_path, patch)
        with pytest.raises(JournalError, match="older whoseblock"):
            open_journal(journal_url, write=False)
        # One that fails half way changes nothing.
        script.write_text(SECOND.format("op.execute('DROP TABLE nothing')"))
        with pytest.raises(JournalError, match="nothing"):
            open_journal(journal_url)
        script.write_text(SECOND.format("pass"))
        with open_journal(journal_url) as journal:
            assert journal.history(noted.failure) == before
        with (
            Database(place_of(journal_url), write=False) as database,
            database.reading() as connection,
        ):
            assert connection.scalar(text("SELECT colour FROM failures")) == "blue"
        with open_journal(journal_url, write=False) as journal:
            assert journal.history(noted.failure) == before
    for write in (True, False):
        with pytest.raises(JournalError, match="newer whoseblock"):
            open_journal(journal_url, write=write)


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
    # There is nothing to migrate any more, and what would do it is not even loaded.
    done = subprocess.run(words, input="\n", capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


def test_the_package_has_the_migrations() -> None:
    listed = {path.name for path in (versions.MIGRATIONS / "versions").glob("*.py")}
    assert {"__init__.py", "r0001_the_journal.py"} <= listed
    assert (versions.MIGRATIONS / "env.py").is_file()
