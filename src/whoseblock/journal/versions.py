"""Create the tables of a new journal, upgrade those of version 3, and refuse all others."""

from typing import Final

from sqlalchemy import Connection, insert, inspect, select, text, update

from whoseblock.errors import JournalError
from whoseblock.journal.database import Database, missing
from whoseblock.journal.location import JournalLocation
from whoseblock.journal.schema import METADATA, VERSION, findings, journal_version, step_events

__all__ = ["prepare_tables"]


#: The version that is upgraded; those before it were never released.
_OLD: Final = 3


def prepare_tables(database: Database) -> None:
    """Create all tables in an empty database; upgrade or check the version of any other.

    This is one transaction.  Raises `JournalError` if the database is no journal, is one of another
    version, or is empty or old and only read.
    """
    with database.reading() as connection:
        if _find_version(connection, database.location) == VERSION:
            return
    if not database.write:
        with database.reading() as connection:
            if _find_version(connection, database.location) is None:
                raise missing(database.location)
        raise JournalError(
            f"the journal {database.location.name!r} was made by an older whoseblock",
            hint="a command that writes to it upgrades it: whoseblock respond --resume",
        )
    with database.writing(lock="whoseblock tables") as connection:
        # Another process may have created or upgraded them since.
        version = _find_version(connection, database.location)
        if version is None:
            # A table of the same name that is already there is not the journal's: this raises.
            METADATA.create_all(connection, checkfirst=False)
            connection.execute(insert(journal_version).values(version_num=VERSION))
        elif version == _OLD:
            _upgrade(connection)


def _upgrade(connection: Connection) -> None:
    """Add the codes, which stay NULL in the rows that exist: their plans are not carried out."""
    for table in (findings, step_events):
        kind = table.c.mac.type.compile(connection.dialect)
        connection.execute(text(f"ALTER TABLE {table.name} ADD COLUMN {table.c.mac.name} {kind}"))
    connection.execute(update(journal_version).values(version_num=VERSION))


def _find_version(connection: Connection, location: JournalLocation) -> int | None:
    """Return `VERSION` or `_OLD`, None for an empty database; refuse any other version."""
    tables = inspect(connection)
    if not tables.has_table(journal_version.name):
        # A server's database may have other tables, but a file holds nothing but a journal.
        if location.file is not None and tables.get_table_names():
            raise JournalError(
                f"{location.name!r} is a database, but not a journal", hint="name another file"
            )
        return None
    stored = connection.execute(select(journal_version.c.version_num)).scalar()
    # Version 1 was stored as a text.
    version = int(str(stored)) if str(stored).isdecimal() else 0
    if version in (VERSION, _OLD):
        return version
    age = "a newer" if version > VERSION else "an older"
    raise JournalError(
        f"the journal {location.name!r} was made by {age} whoseblock"
        f" (version {version} of its tables, not {VERSION})",
        hint="use that one, or name another journal with --journal",
    )
