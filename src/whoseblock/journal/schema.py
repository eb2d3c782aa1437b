"""The tables of the journal.

Rows are only added.  Two things are filled in later, once: the end of a run, and when, by which run
and why a failure was closed.  ``mac`` is a code of `whoseblock.journal.authentication`, NULL in
rows from before version 4.  A change to these tables needs another `VERSION`; a test compares them
with those of the present one.
"""

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from whoseblock.journal.columns import Id, JsonText, PathBytes, Plain, Unsigned, Utc
from whoseblock.journal.records import State

__all__ = [
    "METADATA",
    "VERSION",
    "failures",
    "findings",
    "hosts",
    "journal_version",
    "owner_paths",
    "owners",
    "plan_failures",
    "plans",
    "reports",
    "runs",
    "step_events",
    "steps",
]

#: The version of the tables below, which a journal holds in `journal_version`.
VERSION: Final = 4

METADATA: Final = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)


def _id() -> "Column[int]":
    return Column("id", Id, primary_key=True)


def _to(table: str, name: str, *, nullable: bool = False, index: bool = False) -> "Column[int]":
    """Return a column that refers to a row of another table."""
    return Column(name, BigInteger, ForeignKey(f"{table}.id"), nullable=nullable, index=index)


journal_version: Final = Table(
    "journal_version",
    METADATA,
    Column("version_num", Integer, primary_key=True, autoincrement=False),
)

hosts: Final = Table(
    "hosts",
    METADATA,
    _id(),
    Column("name", Plain, nullable=False),
    Column("machine_id", Plain, nullable=False),
    UniqueConstraint("name", "machine_id"),
)

runs: Final = Table(
    "runs",
    METADATA,
    _id(),
    _to("hosts", "host"),
    Column("uid", BigInteger, nullable=False),
    Column("user_name", Plain, nullable=False),
    Column("sudo_user", Plain, nullable=False),
    Column("pid", BigInteger, nullable=False),
    Column("process", Plain, nullable=False),
    Column("command", JsonText, nullable=False),
    Column("version", Text, nullable=False),
    Column("started", Utc, nullable=False),
    Column("ended", Utc),
)

failures: Final = Table(
    "failures",
    METADATA,
    _id(),
    _to("hosts", "host"),
    Column("device", Plain, nullable=False, index=True),
    Column("identity", Plain, nullable=False),
    Column("start", BigInteger, nullable=False),
    Column("length", BigInteger, nullable=False),
    Column("target", Plain, nullable=False),
    Column("first_seen", Utc, nullable=False),
    _to("runs", "run"),
    Column("closed", Utc),
    _to("runs", "closed_by", nullable=True),
    Column("closed_because", Plain),
)
_OPEN: Final = failures.c.closed.is_(None)
#: The same failure is one row for as long as it is open.  It is looked for by its place, for either
#: name of a device may be unknown: the place comes first, or each new failure reads all others.
Index(
    "ix_failures_open",
    *(failures.c[name] for name in ("host", "start", "length", "device", "identity")),
    unique=True,
    sqlite_where=_OPEN,
    postgresql_where=_OPEN,
)

reports: Final = Table(
    "reports",
    METADATA,
    _id(),
    _to("failures", "failure", index=True),
    _to("runs", "run"),
    Column("at", Utc, nullable=False, index=True),
    Column("source", Plain, nullable=False),
    Column("origin", Plain, nullable=False),
    # Names the event itself, so that it is reported once however often a log is read.
    Column("event", LargeBinary, unique=True),
    Column("detail", JsonText, nullable=False),
)

findings: Final = Table(
    "findings",
    METADATA,
    _id(),
    _to("failures", "failure", index=True),
    _to("runs", "run"),
    Column("at", Utc, nullable=False),
    Column("complete", Boolean, nullable=False),
    Column("notes", JsonText, nullable=False),
    Column("answer", JsonText, nullable=False),
    Column("mac", LargeBinary),
)

#: The rows of an answer once more, for questions that SQL can answer.
owners: Final = Table(
    "owners",
    METADATA,
    Column("finding", BigInteger, ForeignKey("findings.id"), primary_key=True, autoincrement=False),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("kind", String(16), nullable=False),
    Column("start", BigInteger, nullable=False),
    Column("length", BigInteger, nullable=False),
    Column("what", Plain),
    # 0 on a filesystem without subvolumes.
    Column("subvolume", Unsigned),
    Column("inode", Unsigned),
    Column("generation", Unsigned),
    Column("file_offset", BigInteger),
)

#: ``mounted`` paths begin where the filesystem was mounted, the others at its root.
owner_paths: Final = Table(
    "owner_paths",
    METADATA,
    Column("finding", BigInteger, primary_key=True, autoincrement=False),
    Column("owner", Integer, primary_key=True, autoincrement=False),
    Column("mounted", Boolean, primary_key=True, autoincrement=False),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("digest", BigInteger, nullable=False, index=True),
    Column("path", PathBytes, nullable=False),
    ForeignKeyConstraint(["finding", "owner"], ["owners.finding", "owners.number"]),
)

plans: Final = Table(
    "plans",
    METADATA,
    _id(),
    _to("runs", "run"),
    Column("at", Utc, nullable=False),
    Column("options", JsonText, nullable=False),
)

plan_failures: Final = Table(
    "plan_failures",
    METADATA,
    Column("plan", BigInteger, ForeignKey("plans.id"), primary_key=True, autoincrement=False),
    Column(
        "failure",
        BigInteger,
        ForeignKey("failures.id"),
        primary_key=True,
        autoincrement=False,
        index=True,
    ),
)

steps: Final = Table(
    "steps",
    METADATA,
    _id(),
    _to("plans", "plan"),
    Column("number", Integer, nullable=False),
    Column("kind", Plain, nullable=False),
    _to("failures", "failure", nullable=True, index=True),
    Column("parameters", JsonText, nullable=False),
    UniqueConstraint("plan", "number"),
)

_STATES: Final = ", ".join(f"'{state}'" for state in State)
step_events: Final = Table(
    "step_events",
    METADATA,
    _id(),
    _to("steps", "step"),
    Column("number", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    _to("runs", "run"),
    Column("at", Utc, nullable=False),
    Column("detail", JsonText, nullable=False),
    Column("mac", LargeBinary),
    CheckConstraint(text(f"state IN ({_STATES})"), name="state"),
    # Two writers cannot both append what follows the same event.
    UniqueConstraint("step", "number"),
)
