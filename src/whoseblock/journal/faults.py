"""Turn errors of a database into a `JournalError` with a hint."""

import os
import sqlite3
from typing import Final

from sqlalchemy.exc import DBAPIError

from whoseblock.errors import JournalError, JournalPrivilegeError
from whoseblock.journal.location import JournalLocation

__all__ = ["as_journal_error"]

_MAKE_ROOM: Final = "make room on its disk; until then no device is written"
_SERVER: Final = "check that the server runs and is reachable, and try again"

#: By SQLite's primary error codes.
_SQLITE: Final = {
    sqlite3.SQLITE_FULL: ("is on a full disk", _MAKE_ROOM),
    sqlite3.SQLITE_READONLY: (
        "cannot be written",
        "check whether its file or filesystem is read-only, and its owner",
    ),
    sqlite3.SQLITE_CORRUPT: (
        "is damaged",
        "move it away and keep it: `sqlite3 FILE .recover` may recover its content",
    ),
    sqlite3.SQLITE_NOTADB: ("is not a SQLite database", "name another file, or move it away"),
    sqlite3.SQLITE_BUSY: ("is locked by another process for too long", "try again later"),
    sqlite3.SQLITE_CANTOPEN: (
        "cannot be opened",
        "its folder must exist and be writable: SQLite creates files next to the database",
    ),
    sqlite3.SQLITE_IOERR: (
        "cannot be read or written",
        "check the kernel log for errors of its disk, and whether that is full",
    ),
}

#: By PostgreSQL's SQLSTATE, or the class that it begins with.
_POSTGRESQL: Final = {
    "28": (
        "refuses this user",
        "check the user and the password of its URL, and pg_hba.conf",
    ),
    "3D": ("does not exist", "create the database: createdb NAME"),
    "53100": ("is on a full disk", _MAKE_ROOM),
    "53": ("is out of resources", "check the log of the server"),
    "25006": ("cannot be written", "use the primary server: this one, or its user, is read-only"),
    "42501": ("does not permit this", "grant the user the rights on the tables of the journal"),
    "55P03": ("is locked by another process for too long", "try again later"),
    "57": ("is unavailable: the server shuts down", _SERVER),
    "58": ("cannot be read or written", "check the log of the server"),
    "XX": ("is damaged", "check the log of the server"),
}


def as_journal_error(error: Exception, location: JournalLocation) -> JournalError:
    """Return the `JournalError` for an error of the database, its driver or its files."""
    cause = getattr(error, "orig", None) if isinstance(error, DBAPIError) else error
    what, hint = "", ""
    details = str(cause if isinstance(cause, BaseException) else error)
    if isinstance(cause, sqlite3.Error):
        code = getattr(cause, "sqlite_errorcode", None)
        what, hint = _SQLITE.get((code or 0) & 0xFF, ("", ""))
    elif location.file is None and isinstance(cause, BaseException):
        what, hint, details = _of_server(cause, details)
    elif isinstance(cause, OSError):
        what, hint = (
            "cannot be opened",
            "check the owner of its folder, or name another with --journal",
        )
        details = cause.strerror or os.strerror(cause.errno or 0)
    sentence = f"the journal {location.name!r} {what or 'cannot be used'}: {details}"
    if isinstance(cause, PermissionError) and location.file is not None:
        return JournalPrivilegeError(
            sentence.rstrip(": "), hint="try as root, or name another with --journal"
        )
    return JournalError(sentence.rstrip(": "), hint=hint)


def _of_server(cause: BaseException, details: str) -> tuple[str, str, str]:
    """Describe an error of pg8000: of the server, as a dictionary, or of the connection."""
    fields = _said(cause)
    earlier = cause.__context__
    while fields is None and earlier is not None:
        # A server that refuses a connection closes it after its message.  pg8000 then fails to
        # terminate it, and raises that: an OSError, or an InterfaceError caused by one.
        fields, earlier = _said(earlier), earlier.__context__
    if fields is None:
        why = cause.__cause__
        return "cannot be reached", _SERVER, str(why) if isinstance(why, OSError) else details
    code = str(fields.get("C", ""))
    what, hint = _POSTGRESQL.get(code) or _POSTGRESQL.get(code[:2]) or ("", "")
    return what, hint, str(fields.get("M", ""))


def _said(error: BaseException) -> dict[str, str] | None:
    """Return the fields of an error of the server, None for any other error."""
    fields = error.args[0] if error.args else None
    return fields if isinstance(fields, dict) else None
