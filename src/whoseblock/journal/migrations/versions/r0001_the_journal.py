"""The first journal: failures, reports, findings, plans, steps and their events.

Types are written out: what `whoseblock.journal.columns` makes of them in Python may change, these
columns do not.
"""

import sqlalchemy as sa
from alembic import op

__all__ = ["down_revision", "revision", "upgrade"]

revision = "0001"
down_revision = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Make all tables."""
    op.create_table(
        "hosts",
        sa.Column("id", _ID, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("machine_id", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_hosts"),
        sa.UniqueConstraint("name", "machine_id", name="uq_hosts_name_machine_id"),
    )
    op.create_table(
        "runs",
        sa.Column("id", _ID, nullable=False),
        sa.Column("host", sa.BigInteger(), nullable=False),
        sa.Column("uid", sa.BigInteger(), nullable=False),
        sa.Column("user_name", sa.Text(), nullable=False),
        sa.Column("sudo_user", sa.Text(), nullable=False),
        sa.Column("pid", sa.BigInteger(), nullable=False),
        sa.Column("process", sa.Text(), nullable=False),
        sa.Column("command", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("started", _MOMENT, nullable=False),
        sa.Column("ended", _MOMENT),
        sa.ForeignKeyConstraint(["host"], ["hosts.id"], name="fk_runs_host"),
        sa.PrimaryKeyConstraint("id", name="pk_runs"),
    )
    op.create_table(
        "failures",
        sa.Column("id", _ID, nullable=False),
        sa.Column("host", sa.BigInteger(), nullable=False),
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("identity", sa.Text(), nullable=False),
        sa.Column("start", sa.BigInteger(), nullable=False),
        sa.Column("length", sa.BigInteger(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("first_seen", _MOMENT, nullable=False),
        sa.Column("run", sa.BigInteger(), nullable=False),
        sa.Column("closed", _MOMENT),
        sa.Column("closed_by", sa.BigInteger()),
        sa.Column("closed_because", sa.Text()),
        sa.ForeignKeyConstraint(["closed_by"], ["runs.id"], name="fk_failures_closed_by"),
        sa.ForeignKeyConstraint(["host"], ["hosts.id"], name="fk_failures_host"),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name="fk_failures_run"),
        sa.PrimaryKeyConstraint("id", name="pk_failures"),
    )
    op.create_index("ix_failures_device", "failures", ["device"])
    op.create_index(
        "ix_failures_open",
        "failures",
        ["host", "start", "length", "device", "identity"],
        unique=True,
        sqlite_where=sa.text("closed IS NULL"),
        postgresql_where=sa.text("closed IS NULL"),
    )
    op.create_table(
        "plans",
        sa.Column("id", _ID, nullable=False),
        sa.Column("run", sa.BigInteger(), nullable=False),
        sa.Column("at", _MOMENT, nullable=False),
        sa.Column("options", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name="fk_plans_run"),
        sa.PrimaryKeyConstraint("id", name="pk_plans"),
    )
    op.create_table(
        "findings",
        sa.Column("id", _ID, nullable=False),
        sa.Column("failure", sa.BigInteger(), nullable=False),
        sa.Column("run", sa.BigInteger(), nullable=False),
        sa.Column("at", _MOMENT, nullable=False),
        sa.Column("complete", sa.Boolean(), nullable=False),
        sa.Column("notes", sa.Text(), nullable=False),
        sa.Column("answer", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["failure"], ["failures.id"], name="fk_findings_failure"),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name="fk_findings_run"),
        sa.PrimaryKeyConstraint("id", name="pk_findings"),
    )
    op.create_index("ix_findings_failure", "findings", ["failure"])
    op.create_table(
        "plan_failures",
        sa.Column("plan", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("failure", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.ForeignKeyConstraint(["failure"], ["failures.id"], name="fk_plan_failures_failure"),
        sa.ForeignKeyConstraint(["plan"], ["plans.id"], name="fk_plan_failures_plan"),
        sa.PrimaryKeyConstraint("plan", "failure", name="pk_plan_failures"),
    )
    op.create_index("ix_plan_failures_failure", "plan_failures", ["failure"])
    op.create_table(
        "reports",
        sa.Column("id", _ID, nullable=False),
        sa.Column("failure", sa.BigInteger(), nullable=False),
        sa.Column("run", sa.BigInteger(), nullable=False),
        sa.Column("at", _MOMENT, nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("origin", sa.Text(), nullable=False),
        sa.Column("event", sa.LargeBinary()),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["failure"], ["failures.id"], name="fk_reports_failure"),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name="fk_reports_run"),
        sa.PrimaryKeyConstraint("id", name="pk_reports"),
        sa.UniqueConstraint("event", name="uq_reports_event"),
    )
    op.create_index("ix_reports_at", "reports", ["at"])
    op.create_index("ix_reports_failure", "reports", ["failure"])
    op.create_table(
        "steps",
        sa.Column("id", _ID, nullable=False),
        sa.Column("plan", sa.BigInteger(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("failure", sa.BigInteger()),
        sa.Column("parameters", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["failure"], ["failures.id"], name="fk_steps_failure"),
        sa.ForeignKeyConstraint(["plan"], ["plans.id"], name="fk_steps_plan"),
        sa.PrimaryKeyConstraint("id", name="pk_steps"),
        sa.UniqueConstraint("plan", "number", name="uq_steps_plan_number"),
    )
    op.create_index("ix_steps_failure", "steps", ["failure"])
    op.create_table(
        "owners",
        sa.Column("finding", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("start", sa.BigInteger(), nullable=False),
        sa.Column("length", sa.BigInteger(), nullable=False),
        sa.Column("what", sa.Text()),
        sa.Column("inode", sa.BigInteger()),
        sa.Column("generation", sa.BigInteger()),
        sa.Column("file_offset", sa.BigInteger()),
        sa.ForeignKeyConstraint(["finding"], ["findings.id"], name="fk_owners_finding"),
        sa.PrimaryKeyConstraint("finding", "number", name="pk_owners"),
    )
    op.create_table(
        "step_events",
        sa.Column("id", _ID, nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("run", sa.BigInteger(), nullable=False),
        sa.Column("at", _MOMENT, nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name="fk_step_events_run"),
        sa.ForeignKeyConstraint(["step"], ["steps.id"], name="fk_step_events_step"),
        sa.PrimaryKeyConstraint("id", name="pk_step_events"),
        sa.CheckConstraint(
            "state IN ('planned', 'started', 'done', 'verified', 'failed', 'left')", name="state"
        ),
        sa.UniqueConstraint("step", "number", name="uq_step_events_step_number"),
    )
    op.create_table(
        "owner_paths",
        sa.Column("finding", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("owner", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("mounted", sa.Boolean(), autoincrement=False, nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("digest", sa.BigInteger(), nullable=False),
        sa.Column("path", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["finding", "owner"], ["owners.finding", "owners.number"], name="fk_owner_paths_finding"
        ),
        sa.PrimaryKeyConstraint("finding", "owner", "mounted", "number", name="pk_owner_paths"),
    )
    op.create_index("ix_owner_paths_digest", "owner_paths", ["digest"])
