"""SQL for a PostgreSQL database of many hosts: its tables, and roles that may only add own rows.

A host's role has the name of the host, as gethostname(2) returns it.  Row-level security compares
it with the host of each row.
"""

from collections.abc import Iterator
from typing import Final

from sqlalchemy import Table
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex, CreateTable

from whoseblock.journal.schema import (
    METADATA,
    VERSION,
    failures,
    findings,
    journal_version,
    runs,
    step_events,
)

__all__ = ["HOST_ROLE", "READER_ROLE", "grants"]

HOST_ROLE: Final = "whoseblock_host"
READER_ROLE: Final = "whoseblock_reader"

#: Whether a row of a host is one of the role's.
_HOST: Final = "EXISTS (SELECT FROM hosts h WHERE h.id = {column} AND h.name = current_user::text)"
#: The same for a row with a run.
_RUN: Final = (
    "EXISTS (SELECT FROM runs r JOIN hosts h ON h.id = r.host"
    " WHERE r.id = {column} AND h.name = current_user::text)"
)
_FAILURE: Final = (
    "EXISTS (SELECT FROM failures f JOIN hosts h ON h.id = f.host"
    " WHERE f.id = {column} AND h.name = current_user::text)"
)
_FINDING: Final = (
    "EXISTS (SELECT FROM findings f JOIN runs r ON r.id = f.run JOIN hosts h ON h.id = r.host"
    " WHERE f.id = {column} AND h.name = current_user::text)"
)
_PLAN: Final = (
    "EXISTS (SELECT FROM plans p JOIN runs r ON r.id = p.run JOIN hosts h ON h.id = r.host"
    " WHERE p.id = {column} AND h.name = current_user::text)"
)
_STEP: Final = (
    "EXISTS (SELECT FROM steps s JOIN plans p ON p.id = s.plan JOIN runs r ON r.id = p.run"
    " JOIN hosts h ON h.id = r.host WHERE s.id = {column} AND h.name = current_user::text)"
)

#: The rows that a host may insert, by table.
_OWN: Final = {
    "hosts": ["hosts.name = current_user::text"],
    "runs": [_HOST.format(column="runs.host")],
    "failures": [_HOST.format(column="failures.host"), _RUN.format(column="failures.run")],
    "reports": [_FAILURE.format(column="reports.failure"), _RUN.format(column="reports.run")],
    "findings": [_FAILURE.format(column="findings.failure"), _RUN.format(column="findings.run")],
    "owners": [_FINDING.format(column="owners.finding")],
    "owner_paths": [_FINDING.format(column="owner_paths.finding")],
    "plans": [_RUN.format(column="plans.run")],
    "plan_failures": [
        _PLAN.format(column="plan_failures.plan"),
        _FAILURE.format(column="plan_failures.failure"),
    ],
    "steps": [
        _PLAN.format(column="steps.plan"),
        f"(steps.failure IS NULL OR {_FAILURE.format(column='steps.failure')})",
    ],
    "step_events": [_STEP.format(column="step_events.step"), _RUN.format(column="step_events.run")],
}

#: What is filled in later: the columns, the rows in which it may be, and the rows after that.
_LATER: Final = {
    runs: (
        ("ended",),
        [*_OWN["runs"], "runs.ended IS NULL"],
        [*_OWN["runs"], "runs.ended IS NOT NULL"],
    ),
    failures: (
        ("closed", "closed_by", "closed_because"),
        [*_OWN["failures"][:1], "failures.closed IS NULL"],
        [
            *_OWN["failures"][:1],
            "failures.closed IS NOT NULL",
            _RUN.format(column="failures.closed_by"),
        ],
    ),
}


def grants() -> Iterator[str]:
    """Yield the lines of a script for psql; running it again changes nothing."""
    yield "-- The tables of whoseblock's journal for many hosts, and their roles."
    yield "-- Run it as the owner of the database: whoseblock journal grants | psql fleet"
    yield "-- Then, for each host and each reader:"
    yield f"--   CREATE ROLE \"node7\" LOGIN PASSWORD '...' IN ROLE {HOST_ROLE};"
    yield f"--   CREATE ROLE \"alice\" LOGIN PASSWORD '...' IN ROLE {READER_ROLE};"
    yield r"\set ON_ERROR_STOP on"
    for statement in _statements():
        yield f"{statement};"


def _statements() -> Iterator[str]:
    tables = [table for table in METADATA.sorted_tables if table is not journal_version]
    yield "BEGIN"
    yield from _make_tables()
    for role in (HOST_ROLE, READER_ROLE):
        yield (
            f"DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{role}')"
            f" THEN CREATE ROLE {role} NOLOGIN; END IF; END $$"
        )
    both = f"{HOST_ROLE}, {READER_ROLE}"
    # In a schema where others may create functions, queries could call theirs.
    yield "REVOKE CREATE ON SCHEMA public FROM PUBLIC"
    yield f"GRANT USAGE ON SCHEMA public TO {both}"
    for table in (journal_version, *tables):
        # The host that created a table would not be bound by its policies.
        yield f"ALTER TABLE {table.name} OWNER TO CURRENT_USER"
        yield f"REVOKE ALL ON {table.name} FROM PUBLIC, {both}"
        yield f"GRANT SELECT ON {table.name} TO {both}"
    for table in tables:
        yield from _grant(table)
    yield "COMMIT"


def _make_tables() -> Iterator[str]:
    """Yield the statements that create the tables, or upgrade those of version 3."""
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    for table in METADATA.sorted_tables:
        yield str(CreateTable(table, if_not_exists=True).compile(dialect=dialect)).strip()
        for index in sorted(table.indexes, key=lambda index: str(index.name)):
            yield str(CreateIndex(index, if_not_exists=True).compile(dialect=dialect)).strip()
    for table in (findings, step_events):
        yield f"ALTER TABLE {table.name} ADD COLUMN IF NOT EXISTS mac BYTEA"
    name = journal_version.name
    yield f"UPDATE {name} SET version_num = {VERSION} WHERE version_num = {VERSION - 1}"  # noqa: S608 - numbers
    yield f"INSERT INTO {name} SELECT {VERSION} WHERE NOT EXISTS (SELECT FROM {name})"  # noqa: S608 - numbers


def _grant(table: Table) -> Iterator[str]:
    """Yield the rights of hosts on a table, and its policies."""
    name = table.name
    columns = [column.name for column in table.columns if column.name != "id"]
    # Without the numbers of rows: a host could take one that another host's next row gets.
    yield f"GRANT INSERT ({', '.join(columns)}) ON {name} TO {HOST_ROLE}"
    if "id" in table.columns:
        yield f"GRANT USAGE ON SEQUENCE {name}_id_seq TO {HOST_ROLE}"
    yield f"ALTER TABLE {name} ENABLE ROW LEVEL SECURITY"
    yield f"DROP POLICY IF EXISTS whoseblock_read ON {name}"
    yield (
        f"CREATE POLICY whoseblock_read ON {name} FOR SELECT TO {HOST_ROLE}, {READER_ROLE}"
        " USING (true)"
    )
    yield f"DROP POLICY IF EXISTS whoseblock_insert ON {name}"
    yield (
        f"CREATE POLICY whoseblock_insert ON {name} FOR INSERT TO {HOST_ROLE}"
        f" WITH CHECK ({_all(_OWN[name])})"
    )
    if table in _LATER:
        filled, before, after = _LATER[table]
        yield f"GRANT UPDATE ({', '.join(filled)}) ON {name} TO {HOST_ROLE}"
        yield f"DROP POLICY IF EXISTS whoseblock_update ON {name}"
        yield (
            f"CREATE POLICY whoseblock_update ON {name} FOR UPDATE TO {HOST_ROLE}"
            f" USING ({_all(before)}) WITH CHECK ({_all(after)})"
        )


def _all(conditions: list[str]) -> str:
    return "\n  AND ".join(conditions)
