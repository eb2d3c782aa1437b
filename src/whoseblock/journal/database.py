"""The database of a journal: connections, durability, locks and errors."""

import json
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from sqlalchemy import Connection, Engine, create_engine, event, func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import QueuePool

from whoseblock.closing import Closing
from whoseblock.errors import JournalError
from whoseblock.extras import import_extra
from whoseblock.journal.columns import digest
from whoseblock.journal.faults import as_journal_error
from whoseblock.journal.limits import USUAL_LIMITS, Limits
from whoseblock.journal.location import JournalLocation
from whoseblock.media.trusted_files import UntrustedFileError, check_file, find_trusted

__all__ = ["Database", "missing"]

_RETRY_S: Final = 0.01
_LOG: Final = "whoseblock"


class Database(Closing):
    """A SQLite file or a PostgreSQL database, for reading or for writing too.

    Every error of it is a `JournalError`; then nothing of the transaction is in the database,
    unless the connection was lost during the commit.
    """

    def __init__(
        self, location: JournalLocation, *, write: bool, limits: Limits = USUAL_LIMITS
    ) -> None:
        self.location = location
        self.write = write
        self._inode: tuple[int, int] | None = None
        self._shared = threading.local()
        if location.file is None:
            self._engine = _postgresql(location, limits)
        else:
            file = _find_or_make(location, location.file, write=write)
            self._inode = _inode_of(file)
            self._engine = _sqlite(location, file, limits, write=write)

    def close(self) -> None:
        """Close all connections."""
        with self._faults():
            self._engine.dispose()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Make all blocks of this thread within this one a single transaction, durable at its end.

        After an error nothing of them is in the database.
        """
        with self.writing() as connection:
            self._shared.connection = connection
            try:
                yield
            finally:
                self._shared.connection = None

    @property
    def _outer(self) -> Connection | None:
        """The connection of the enclosing `together` block, if there is one."""
        connection: Connection | None = getattr(self._shared, "connection", None)
        return connection

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Yield a connection that sees one state of the database.

        A value of another kind than its column's, which only another program can have stored, is
        an error of the journal, too.
        """
        if (outer := self._outer) is not None:
            with self._faults():
                yield outer
            return
        with (
            self._faults(),
            self._foreign_values(),
            self._connected() as connection,
            connection.begin(),
        ):
            if connection.dialect.name == "postgresql":
                connection.exec_driver_sql(
                    "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"
                )
            yield connection

    @contextmanager
    def writing(self, lock: object = None) -> Iterator[Connection]:
        """Yield a connection whose changes are durable when the block has ended.

        ``lock`` is a JSON value: blocks with an equal one exclude each other in all processes.
        (In SQLite all writers do.)
        """
        if (outer := self._outer) is not None:
            with self._faults():
                _take_lock(outer, lock)
                yield outer
            return
        with self._faults(), self._connected() as connection:
            connection.execution_options(whoseblock_writes=True)
            self._check_file()
            with connection.begin():
                _take_lock(connection, lock)
                yield connection
                self._check_file()

    def _check_file(self) -> None:
        """Raise unless the file still has its name: writes to a removed file would be lost."""
        if self.location.file is None:
            return
        try:
            found = _inode_of(self.location.file)
        except FileNotFoundError:
            found = None
        if found != self._inode:
            raise JournalError(
                f"the journal {self.location.name!r} was removed or replaced while it was in use",
                hint="start again; what was journaled before is in the file that was removed",
            )

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except (SQLAlchemyError, sqlite3.Error, OSError) as error:
            raise as_journal_error(error, self.location) from error

    @contextmanager
    def _foreign_values(self) -> Iterator[None]:
        try:
            yield
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise JournalError(
                f"the journal {self.location.name!r} has a value of the wrong kind"
                f" ({type(error).__name__})",
                hint="another program has written to it",
            ) from error

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        """Connect; a connection in an unknown state is not used again."""
        with self._connect() as connection:
            try:
                yield connection
            except OSError:
                connection.invalidate()
                raise

    def _connect(self) -> Connection:
        try:
            return self._engine.connect()
        except OSError:
            # A pooled connection is broken, and SQLAlchemy does not recognise pg8000's error for
            # that.  The others may be broken, too, so all are replaced.
            self._engine.dispose()
            return self._engine.connect()


def _take_lock(connection: Connection, lock: object) -> None:
    if lock is not None and connection.dialect.name == "postgresql":
        key = digest(json.dumps(lock).encode())
        connection.execute(select(func.pg_advisory_xact_lock(key)))


def _inode_of(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_dev, status.st_ino


def _find_or_make(location: JournalLocation, named: Path, *, write: bool) -> Path:
    """Return the real path of the file, which no other user can change or replace.

    With ``write``, create it and its folder, readable by the user only.
    """
    try:
        file = find_trusted(f"the journal {location.name!r}", named, make=write)
        # SQLite replays what is in these files.
        for suffix in ("", "-wal", "-shm", "-journal"):
            check_file(file, suffix=suffix)
        flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        if write:
            os.close(os.open(file.path, flags | os.O_RDWR | os.O_CREAT, 0o600))
            folder = os.open(file.path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        elif not file.path.exists() or not file.path.stat().st_size:
            raise missing(location)
        else:
            # SQLite does not tell a file that it may not read from one that is not there.
            os.close(os.open(file.path, flags | os.O_RDONLY))
    except UntrustedFileError as error:
        raise JournalError(str(error), hint=error.hint) from error
    except OSError as error:
        raise as_journal_error(error, location) from error
    return file.path


def missing(location: JournalLocation) -> JournalError:
    """Return the error for a journal that does not exist."""
    return JournalError(
        f"there is no journal yet at {location.name!r}",
        hint="name another with --journal or $WHOSEBLOCK_JOURNAL",
    )


def _sqlite(location: JournalLocation, file: Path, limits: Limits, *, write: bool) -> Engine:
    name = quote(os.fsencode(file))
    mode = "rw" if write else "ro"
    if not write and not os.access(file.parent, os.W_OK) and not Path(f"{file}-wal").exists():
        # SQLite creates files beside the database even to read it, unless it is declared immutable;
        # on a filesystem that is mounted read-only it cannot.
        mode += "&immutable=1"

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"file:{name}?mode={mode}",
            uri=True,
            timeout=limits.writer_wait_s,
            isolation_level=None,  # the driver must not begin transactions by itself
            check_same_thread=False,
        )
        try:
            _check_schema(connection, location)
        except BaseException:
            connection.close()
            raise
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA synchronous = FULL")
        if write:
            _keep_log(connection, location, limits)
        return connection

    engine = create_engine("sqlite://", creator=connect, poolclass=QueuePool, hide_parameters=True)

    def begin(connection: Connection) -> None:
        # A transaction that reads before it writes would fail if another wrote in between.
        writes = connection.get_execution_options().get("whoseblock_writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    event.listen(engine, "begin", begin)
    return engine


def _check_schema(connection: sqlite3.Connection, location: JournalLocation) -> None:
    """Refuse a database that computes anything when it is read or written.

    Views, triggers, generated columns and virtual tables of a crafted file could run for ever, or
    hide rows (https://www.sqlite.org/security.html).
    """
    connection.execute("PRAGMA trusted_schema = OFF")
    kinds = connection.execute("SELECT DISTINCT type FROM sqlite_master").fetchall()
    computed = {str(kind) for (kind,) in kinds} - {"table", "index"}
    if not computed:
        # 2 and 3 are generated columns, 1 is a hidden one of a virtual table (PRAGMA table_xinfo).
        found = connection.execute(
            "SELECT 1 FROM sqlite_master AS one, pragma_table_xinfo(one.name) AS part"
            " WHERE one.type = 'table' AND (part.hidden <> 0"
            " OR one.sql LIKE 'CREATE VIRTUAL%') LIMIT 1"
        )
        computed = {"generated column"} if found.fetchone() else set()
    if computed:
        raise JournalError(
            f"{location.name!r} is not a journal: it has a {min(computed)}",
            hint="another program has made or changed it: move it away",
        )


def _keep_log(connection: sqlite3.Connection, location: JournalLocation, limits: Limits) -> None:
    """Switch to a write-ahead log; SQLite does not wait for another process that does the same."""
    deadline = time.monotonic() + limits.writer_wait_s
    while True:
        try:
            (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(_RETRY_S)
            continue
        if mode != "wal":
            raise JournalError(
                f"SQLite cannot keep a write-ahead log at {location.name!r}",
                hint="keep the journal on a local filesystem, or in PostgreSQL",
            )
        return


def _postgresql(location: JournalLocation, limits: Limits) -> Engine:
    import_extra("postgresql")
    engine = create_engine(
        location.url,
        connect_args=location.arguments,
        pool_pre_ping=True,
        pool_logging_name=_LOG,
        hide_parameters=True,
    )

    def prepare(connection: Any, _record: object) -> None:  # noqa: ANN401 - of whatever driver
        cursor = connection.cursor()
        # With `off`, a commit that was acknowledged can be lost with the server's power.
        cursor.execute(
            "SELECT set_config('synchronous_commit', 'on', false)"
            " WHERE current_setting('synchronous_commit') = 'off'"
        )
        cursor.execute(f"SET lock_timeout = '{limits.writer_wait_s:.0f}s'")
        cursor.close()
        connection.commit()

    # SQLAlchemy would log each broken connection that it cannot close.
    logging.getLogger(f"sqlalchemy.pool.impl.QueuePool.{_LOG}").setLevel(logging.CRITICAL)
    event.listen(engine, "connect", prepare)
    return engine
