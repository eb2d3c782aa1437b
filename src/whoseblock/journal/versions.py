"""Which version of the schema a journal has, and bringing an older one up to date."""

from pathlib import Path
from typing import Final

from sqlalchemy import Connection, inspect, text

from whoseblock.errors import JournalError
from whoseblock.journal.database import Database, missing
from whoseblock.journal.places import Place
from whoseblock.journal.schema import REVISION, VERSION_TABLE

__all__ = ["MIGRATIONS", "bring_up_to_date"]

#: The folder of alembic's scripts.
MIGRATIONS: Final = Path(__file__).with_name("migrations")


def bring_up_to_date(database: Database) -> None:
    """See that the journal has the tables that this whoseblock knows, all of them or no change.

    A database that is only read must have them already.  Raises `JournalError` for one that a newer
    whoseblock made, and for one that is no journal.
    """
    with database.reading() as connection:
        version = _version(connection, database.place)
    if version == REVISION:
        return
    if not database.write:
        if version is None:
            raise missing(database.place)
        raise JournalError(
            f"the journal {database.place.name!r} was made by an older whoseblock",
            hint="it is brought up to date when it is next written",
        )
    with database.writing(lock="whoseblock migrations") as connection:
        # Another process may have done it since.
        if _version(connection, database.place) != REVISION:
            _migrate(connection)


def _version(connection: Connection, place: Place) -> str | None:
    """Give the journal's version, None for an empty database."""
    tables = inspect(connection)
    if not tables.has_table(VERSION_TABLE):
        # A server's database may well have tables of others, but nobody keeps two things in a file.
        if place.file is not None and tables.get_table_names():
            raise JournalError(
                f"{place.name!r} is a database, but not a journal", hint="name another file"
            )
        return None
    version = connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()  # noqa: S608 - a constant
    if version is not None and version > REVISION:
        raise JournalError(
            f"the journal {place.name!r} was made by a newer whoseblock",
            hint="use that, or name another journal with --journal",
        )
    return version


def _migrate(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    command.upgrade(config, "head")
