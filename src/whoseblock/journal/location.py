"""Find the journal that a path or a URL names; messages omit its password."""

import os
import re
import ssl
from pathlib import Path
from typing import Any, Final, NamedTuple

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from whoseblock.errors import JournalError
from whoseblock.journal.limits import USUAL_LIMITS
from whoseblock.media.trusted_files import user_name

__all__ = ["VARIABLE", "JournalLocation", "locate", "state_folder"]

#: The environment variable that names the journal.
VARIABLE: Final = "WHOSEBLOCK_JOURNAL"
_PORT: Final = 5432
_FORM: Final = (
    "write a path, or postgresql://USER:PASSWORD@HOST/DATABASE, with %40 for @ and %2F for /"
)
_OPTIONS: Final = frozenset({"host", "port", "sslmode", "sslrootcert"})


class JournalLocation(NamedTuple):
    """The location of a journal: ``name`` for messages, and how SQLAlchemy connects to it.

    ``file`` is None if it is a PostgreSQL database.
    """

    name: str
    url: URL
    arguments: dict[str, Any]
    file: Path | None


def locate(given: str | None, server_wait_s: int = USUAL_LIMITS.server_wait_s) -> JournalLocation:
    """Return the location of the journal at a path or a URL, None for the usual one.

    ``server_wait_s`` is as in `Limits`.  Raises `JournalError` for anything else, without repeating
    it: it may hold a password.
    """
    text = given or os.environ.get(VARIABLE) or str(state_folder() / "journal.sqlite")
    if "://" not in text:
        return _sqlite(Path(text))
    scheme, _, rest = text.partition("://")
    if scheme == "sqlite" and rest.startswith("/"):
        return _sqlite(Path(rest[1:]))
    if scheme in {"postgresql", "postgres", "postgresql+pg8000"}:
        return _postgresql(f"postgresql+pg8000://{rest}", server_wait_s)
    kind = scheme if re.fullmatch(r"[a-z0-9+]{1,20}", scheme) else "such a"
    raise JournalError(f"a journal cannot be kept in {kind} database", hint=_FORM)


def state_folder() -> Path:
    """Return the state folder: that of the machine for root, that of the user otherwise."""
    if os.geteuid() == 0:
        return Path("/var/lib/whoseblock")
    state = os.environ.get("XDG_STATE_HOME", "")
    # The XDG specification says to ignore a path that is not absolute.
    folder = Path(state) if state.startswith("/") else Path("~/.local/state").expanduser()
    return folder / "whoseblock"


def _sqlite(file: Path) -> JournalLocation:
    if not file.name:
        raise JournalError("the journal has no name", hint=_FORM)
    return JournalLocation(str(file), URL.create("sqlite"), {}, file.absolute())


def _postgresql(text: str, server_wait_s: int) -> JournalLocation:
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        # The message of the cause holds the URL.
        raise JournalError("the URL of the journal cannot be read", hint=_FORM) from None
    wrong = {"@", "/"} & set(url.host or "") or not url.database
    if wrong or not all(isinstance(value, str) for value in url.query.values()):
        raise JournalError("the URL of the journal cannot be read", hint=_FORM)
    options = {key: str(value) for key, value in url.query.items()}
    if unknown := sorted(options.keys() - _OPTIONS):
        raise JournalError(
            f"the URL of the journal has an unknown option, {unknown[0]!r}",
            hint=f"valid options: {', '.join(sorted(_OPTIONS))}",
        )
    port_text = options.get("port", str(url.port or _PORT))
    if not re.fullmatch("[0-9]{1,5}", port_text):
        raise JournalError("the port in the URL of the journal is not a number", hint=_FORM)
    host, port = options.get("host", url.host or "localhost"), int(port_text)
    arguments: dict[str, Any] = {"timeout": server_wait_s, "application_name": "whoseblock"}
    if host.startswith("/"):
        arguments["unix_sock"] = f"{host}/.s.PGSQL.{port}"
        arguments["ssl_context"] = False
    elif (context := _ssl_context(options)) is not None:
        arguments["ssl_context"] = context
    user = url.username or os.environ.get("PGUSER") or user_name(os.geteuid())
    password = url.password if url.password is not None else os.environ.get("PGPASSWORD")
    at = URL.create(
        url.drivername,
        username=user,
        password=password,
        host=None if host.startswith("/") else host,
        port=port,
        database=url.database,
    )
    where = host if ":" not in host else f"[{host}]"
    return JournalLocation(f"postgresql://{where}:{port}/{url.database}", at, arguments, None)


def _ssl_context(options: dict[str, str]) -> "ssl.SSLContext | bool | None":
    """Return the ``ssl_context`` for pg8000; ``sslmode`` has the values of PostgreSQL's libpq."""
    mode, roots = options.get("sslmode", "prefer"), options.get("sslrootcert")
    if mode == "verify-full":
        try:
            return ssl.create_default_context(cafile=roots)
        except OSError as error:
            raise JournalError(f"sslrootcert {roots!r} cannot be read: {error.strerror}") from error
    known: dict[str, bool | None] = {"disable": False, "prefer": None, "require": True}
    if mode not in known:
        raise JournalError(
            f"the URL of the journal has an unknown sslmode, {mode!r}",
            hint="valid values: disable, prefer, require, verify-full",
        )
    return known[mode]
