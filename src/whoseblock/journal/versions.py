"""Create the tables of a new journal, and refuse a journal of another version."""

from sqlalchemy import Connection, insert, inspect, select

from whoseblock.errors import JournalError
from whoseblock.journal.database import Database, missing
from whoseblock.journal.location import JournalLocation
from whoseblock.journal.schema import METADATA, VERSION, journal_version

__all__ = ["prepare_tables"]


def prepare_tables(database: Database) -> None:
    """Create all tables in an empty database; check the version of any other.

    The tables and the version are created in one transaction.  Raises `JournalError` if the
    database is no journal, is one of another version, or is empty and only read.
    """
    with database.reading() as connection:
        if _is_ready(connection, database.location):
            return
    if not database.write:
        raise missing(database.location)
    with database.writing(lock="whoseblock tables") as connection:
        # Another process may have created them since.
        if not _is_ready(connection, database.location):
            # A table of the same name that is already there is not the journal's: this raises.
            METADATA.create_all(connection, checkfirst=False)
            connection.execute(insert(journal_version).values(version_num=VERSION))


def _is_ready(connection: Connection, location: JournalLocation) -> bool:
    """Return whether the journal has its tables, False for an empty database."""
    tables = inspect(connection)
    if not tables.has_table(journal_version.name):
        # A server's database may have other tables, but a file holds nothing but a journal.
        if location.file is not None and tables.get_table_names():
            raise JournalError(
                f"{location.name!r} is a database, but not a journal", hint="name another file"
            )
        return False
    stored = connection.execute(select(journal_version.c.version_num)).scalar()
    # Version 1 was stored as a text.
    version = int(str(stored)) if str(stored).isdecimal() else 0
    if version == VERSION:
        return True
    age = "a newer" if version > VERSION else "an older"
    raise JournalError(
        f"the journal {location.name!r} was made by {age} whoseblock"
        f" (version {version} of its tables, not {VERSION})",
        hint="use that one, or name another journal with --journal",
    )
