"""What went wrong with the database of a journal, in a sentence and a hint."""

import os
import sqlite3
from typing import Final

from sqlalchemy.exc import DBAPIError

from whoseblock.errors import JournalError, JournalPrivilegeError
from whoseblock.journal.places import Place

__all__ = ["as_journal_error"]

_MAKE_ROOM: Final = "make room where the journal is; until then nothing is written to any device"
_SERVER: Final = "see that the server runs and can be reached, and do it again"

#: By SQLite's primary error codes.
_SQLITE: Final = {
    sqlite3.SQLITE_FULL: ("has no room on its disk", _MAKE_ROOM),
    sqlite3.SQLITE_READONLY: (
        "cannot be written",
        "see whether its file or filesystem is read-only, and whose it is",
    ),
    sqlite3.SQLITE_CORRUPT: (
        "is damaged",
        "move it away and keep it: `sqlite3 FILE .recover` may save what is in it",
    ),
    sqlite3.SQLITE_NOTADB: ("is not a SQLite database", "name another file, or move it away"),
    sqlite3.SQLITE_BUSY: ("is being written by another process for too long", "do it again later"),
    sqlite3.SQLITE_CANTOPEN: (
        "cannot be opened",
        "its folder must be there, and be yours: SQLite makes files next to the database",
    ),
    sqlite3.SQLITE_IOERR: (
        "cannot be read or written",
        "see the kernel's log about the disk that it is on, and whether that is full",
    ),
}

#: By PostgreSQL's SQLSTATE, or the class that it begins with.
_POSTGRESQL: Final = {
    "28": (
        "does not let this user in",
        "see the user and the password of its URL, and pg_hba.conf",
    ),
    "3D": ("does not exist", "make the database: createdb NAME"),
    "53100": ("has no room on its disk", _MAKE_ROOM),
    "53": ("has no resources left", "see the log of the server"),
    "25006": ("cannot be written", "name the primary server: this one, or its user, only reads"),
    "42501": ("does not permit that", "grant the user the rights on the tables of the journal"),
    "55P03": ("is being written by another process for too long", "do it again later"),
    "57": ("is gone: the server shuts down", _SERVER),
    "58": ("cannot be read or written", "see the log of the server"),
    "XX": ("is damaged", "see the log of the server"),
}


def as_journal_error(error: Exception, place: Place) -> JournalError:
    """Put an error of the database, of its driver, or of its files into words."""
    cause = getattr(error, "orig", None) if isinstance(error, DBAPIError) else error
    what, hint = "", ""
    details = str(cause if isinstance(cause, BaseException) else error)
    if isinstance(cause, sqlite3.Error):
        code = getattr(cause, "sqlite_errorcode", None)
        what, hint = _SQLITE.get((code or 0) & 0xFF, ("", ""))
    elif place.file is None and isinstance(cause, BaseException):
        what, hint, details = _of_server(cause, details)
    elif isinstance(cause, OSError):
        what, hint = "cannot be opened", "see whose its folder is, or name another with --journal"
        details = cause.strerror or os.strerror(cause.errno or 0)
    sentence = f"the journal {place.name!r} {what or 'cannot be used'}: {details}"
    if isinstance(cause, PermissionError) and place.file is not None:
        return JournalPrivilegeError(
            sentence.rstrip(": "), hint="try as root, or name another with --journal"
        )
    return JournalError(sentence.rstrip(": "), hint=hint)


def _of_server(cause: BaseException, details: str) -> tuple[str, str, str]:
    """Put an error of pg8000 into words: the server's, as a dictionary, or of the way to it."""
    fields = _said(cause)
    earlier = cause.__context__
    while fields is None and earlier is not None:
        # A server that refuses us is gone as soon as it has said why.  pg8000 bids it farewell, and
        # that this fails is what we hear: as an OSError, or as an InterfaceError that one caused.
        fields, earlier = _said(earlier), earlier.__context__
    if fields is None:
        why = cause.__cause__
        return "cannot be reached", _SERVER, str(why) if isinstance(why, OSError) else details
    code = str(fields.get("C", ""))
    what, hint = _POSTGRESQL.get(code) or _POSTGRESQL.get(code[:2]) or ("", "")
    return what, hint, str(fields.get("M", ""))


def _said(error: BaseException) -> dict[str, str] | None:
    """Give the fields of an error that the server told, None if it is none of the server's."""
    fields = error.args[0] if error.args else None
    return fields if isinstance(fields, dict) else None
