"""Schedules, what became of their times, and the one that a fresh installation has."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql
from uuid_utils.compat import uuid7

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

NIGHTLY_EXPAND = """
    INSERT INTO schedules (id, name, cron, time_zone, action, params, enabled, catch_up_seconds, next_run_at)
    VALUES (
        :id, 'nightly-expand', '0 2 * * *', 'UTC', 'bulk.expand', '{"policy": "autogrow"}', true, 21600,
        (date_trunc('day', now() AT TIME ZONE 'UTC' - interval '2 hours') + interval '26 hours') AT TIME ZONE 'UTC'
    )
"""


def upgrade() -> None:
    op.create_table(
        "schedules",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("cron", sa.Text(), nullable=False),
        sa.Column("time_zone", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("params", postgresql.JSONB(none_as_null=True), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("catch_up_seconds", sa.BigInteger(), nullable=False),
        sa.Column("next_run_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_job_id", sa.Uuid(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("catch_up_seconds >= 0", name=op.f("schedules_catch_up_check")),
        sa.CheckConstraint("enabled = (next_run_at IS NOT NULL)", name=op.f("schedules_next_run_check")),
        sa.CheckConstraint("length(name) BETWEEN 1 AND 128", name=op.f("schedules_name_check")),
        sa.PrimaryKeyConstraint("id", name=op.f("schedules_pkey")),
        sa.UniqueConstraint("name", name=op.f("schedules_name_key")),
    )
    op.create_index("schedules_due", "schedules", ["next_run_at"], postgresql_where=sa.text("next_run_at IS NOT NULL"))
    op.create_table(
        "schedule_runs",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("schedule_id", sa.Uuid(), nullable=False),
        sa.Column("scheduled_for", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_scheduled_for", sa.DateTime(timezone=True), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.Column("outcome", sa.String(32), nullable=False),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.Column("job_id", sa.Uuid(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("outcome IN ('started', 'missed', 'skipped')", name=op.f("schedule_runs_outcome_check")),
        sa.CheckConstraint("(outcome = 'started') = (job_id IS NOT NULL)", name=op.f("schedule_runs_job_check")),
        sa.CheckConstraint("count >= 1 AND (count = 1 OR outcome = 'missed')", name=op.f("schedule_runs_count_check")),
        sa.CheckConstraint("(count = 1) = (last_scheduled_for = scheduled_for)", name=op.f("schedule_runs_span_check")),
        sa.ForeignKeyConstraint(
            ["schedule_id"], ["schedules.id"], name=op.f("schedule_runs_schedule_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("schedule_runs_pkey")),
        sa.UniqueConstraint("schedule_id", "scheduled_for", name=op.f("schedule_runs_schedule_id_scheduled_for_key")),
    )
    op.create_index("schedule_runs_of_schedule", "schedule_runs", ["schedule_id", "id"])
    op.create_index("schedule_runs_created", "schedule_runs", ["created_at"])
    op.execute(sa.text(NIGHTLY_EXPAND).bindparams(id=uuid7()))


def downgrade() -> None:
    op.drop_table("schedule_runs")
    op.drop_table("schedules")
