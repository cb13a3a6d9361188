"""Initial schema: jobs and their ledgers, volumes, snapshots, workers, schedules, idempotency keys, counters."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql
from uuid_utils.compat import uuid7

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TABLES = (
    "schedule_runs",
    "schedules",
    "counters",
    "job_items",
    "idempotency_keys",
    "snapshots",
    "workers",
    "volumes",
    "jobs",
)

NIGHTLY_EXPAND = """
    INSERT INTO schedules (id, name, cron, time_zone, action, params, enabled, catch_up_seconds, next_run_at)
    VALUES (
        :id, 'nightly-expand', '0 2 * * *', 'UTC', 'bulk.expand', '{"policy": "autogrow"}', true, 21600,
        (date_trunc('day', now() AT TIME ZONE 'UTC' - interval '2 hours') + interval '26 hours') AT TIME ZONE 'UTC'
    )
"""


def upgrade() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("status", sa.String(32), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("params", postgresql.JSONB(none_as_null=True), nullable=False),
        sa.Column("volume_id", sa.Uuid(), nullable=True),
        sa.Column("snapshot_id", sa.Uuid(), nullable=True),
        sa.Column("backend", sa.Text(), nullable=True),
        sa.Column("parent_id", sa.Uuid(), nullable=True),
        sa.Column("retry_of", sa.Uuid(), nullable=True),
        sa.Column("created_by", sa.Text(), nullable=True),
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.Column("max_attempts", sa.BigInteger(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("dispatched_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=True),
        sa.Column("run_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("worker_id", sa.Uuid(), nullable=True),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("cancel_requested_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("total", sa.BigInteger(), nullable=True),
        sa.Column("succeeded", sa.BigInteger(), nullable=True),
        sa.Column("failed", sa.BigInteger(), nullable=True),
        sa.Column("skipped", sa.BigInteger(), nullable=True),
        sa.Column("result", postgresql.JSONB(none_as_null=True), nullable=True),
        sa.Column("error", postgresql.JSONB(none_as_null=True), nullable=True),
        sa.Column("schedule_id", sa.Uuid(), nullable=True),
        sa.Column("scheduled_for", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("pruned_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(finished_at IS NOT NULL) = (status IN ('cancelled', 'failed', 'partial', 'succeeded'))",
            name=op.f("jobs_finished_check"),
        ),
        sa.CheckConstraint("lease_expires_at IS NULL OR status = 'running'", name=op.f("jobs_lease_check")),
        sa.CheckConstraint("status <> 'running' OR started_at IS NOT NULL", name=op.f("jobs_started_check")),
        sa.CheckConstraint(
            "status IN ('queued', 'running', 'succeeded', 'partial', 'failed', 'cancelled')",
            name=op.f("jobs_status_check"),
        ),
        sa.CheckConstraint("(schedule_id IS NULL) = (scheduled_for IS NULL)", name=op.f("jobs_schedule_check")),
        sa.CheckConstraint("attempt >= 0 AND max_attempts >= 1 AND epoch >= 0", name=op.f("jobs_counters_check")),
        sa.ForeignKeyConstraint(["parent_id"], ["jobs.id"], name=op.f("jobs_parent_id_fkey"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["retry_of"], ["jobs.id"], name=op.f("jobs_retry_of_fkey"), ondelete="SET NULL"),
        sa.PrimaryKeyConstraint("id", name=op.f("jobs_pkey")),
    )
    op.create_index(
        "jobs_due", "jobs", ["run_at"], postgresql_where=sa.text("status = 'queued' AND dispatched_at IS NULL")
    )
    op.create_index(
        "jobs_leased", "jobs", ["lease_expires_at"], postgresql_where=sa.text("lease_expires_at IS NOT NULL")
    )
    op.create_index("jobs_of_parent", "jobs", ["parent_id", "id"], postgresql_where=sa.text("parent_id IS NOT NULL"))
    op.create_index("jobs_of_volume", "jobs", ["volume_id", "id"])
    op.create_index(
        "jobs_one_live_per_volume",
        "jobs",
        ["volume_id"],
        unique=True,
        postgresql_where=sa.text("status IN ('queued', 'running')"),
    )
    op.create_index(
        "jobs_dispatched",
        "jobs",
        ["dispatched_at"],
        postgresql_where=sa.text("status = 'queued' AND dispatched_at IS NOT NULL"),
    )
    op.create_table(
        "volumes",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("backend", sa.Text(), nullable=False),
        sa.Column("state", sa.String(32), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=True),
        sa.Column("labels", postgresql.JSONB(none_as_null=True), nullable=False),
        sa.Column("autogrow", postgresql.JSONB(none_as_null=True), nullable=True),
        sa.Column("used", sa.BigInteger(), nullable=True),
        sa.Column("used_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("(job_id IS NULL) = (state IN ('available', 'error'))", name=op.f("volumes_job_check")),
        sa.CheckConstraint(
            "state IN ('creating', 'available', 'expanding', 'snapshotting', 'restoring', 'deleting', 'error')",
            name=op.f("volumes_state_check"),
        ),
        sa.CheckConstraint("length(name) BETWEEN 1 AND 128", name=op.f("volumes_name_check")),
        sa.CheckConstraint("size > 0 AND size <= 70368744177664", name=op.f("volumes_size_check")),
        sa.CheckConstraint("used >= 0", name=op.f("volumes_used_check")),
        sa.CheckConstraint("version >= 1", name=op.f("volumes_version_check")),
        sa.PrimaryKeyConstraint("id", name=op.f("volumes_pkey")),
        sa.UniqueConstraint("name", name=op.f("volumes_name_key")),
    )
    op.create_index("volumes_labels", "volumes", ["labels"], postgresql_using="gin")
    op.create_table(
        "workers",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("pid", sa.BigInteger(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("heartbeat_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("uninterrupted_since", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("max_renewal_delay", sa.Float(), server_default=sa.text("0"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("workers_pkey")),
    )
    op.create_table(
        "snapshots",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("volume_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("state", sa.String(32), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=True),
        sa.Column("schedule_id", sa.Uuid(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "state IN ('taking', 'ready', 'restoring', 'cloning', 'deleting', 'error')",
            name=op.f("snapshots_state_check"),
        ),
        sa.CheckConstraint("length(name) BETWEEN 1 AND 128", name=op.f("snapshots_name_check")),
        sa.CheckConstraint("size > 0", name=op.f("snapshots_size_check")),
        sa.CheckConstraint("version >= 1", name=op.f("snapshots_version_check")),
        sa.ForeignKeyConstraint(
            ["volume_id"], ["volumes.id"], name=op.f("snapshots_volume_id_fkey"), ondelete="RESTRICT"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("snapshots_pkey")),
        sa.UniqueConstraint("volume_id", "name", name=op.f("snapshots_volume_id_name_key")),
    )
    op.create_table(
        "idempotency_keys",
        sa.Column("caller", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("route", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("status", sa.BigInteger(), nullable=True),
        sa.Column("body", postgresql.JSONB(none_as_null=True), nullable=True),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("caller", "key", name=op.f("idempotency_keys_pkey")),
    )
    op.create_index(op.f("idempotency_keys_expires_at_idx"), "idempotency_keys", ["expires_at"])
    op.create_table(
        "job_items",
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("volume_id", sa.Uuid(), nullable=False),
        sa.Column("status", sa.String(32), nullable=False),
        sa.Column("lane_id", sa.Uuid(), nullable=True),
        sa.Column("epoch", sa.BigInteger(), nullable=True),
        sa.Column("from_size", sa.BigInteger(), nullable=True),
        sa.Column("to_size", sa.BigInteger(), nullable=True),
        sa.Column("used", sa.BigInteger(), nullable=True),
        sa.Column("snapshot_id", sa.Uuid(), nullable=True),
        sa.Column("code", sa.Text(), nullable=True),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.Column("busy_since", sa.DateTime(timezone=True), nullable=True),
        sa.Column("due_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "status <> 'claimed' OR (lane_id IS NOT NULL AND epoch IS NOT NULL)", name=op.f("job_items_claimed_check")
        ),
        sa.CheckConstraint(
            "status IN ('pending', 'claimed', 'succeeded', 'skipped', 'failed')", name=op.f("job_items_status_check")
        ),
        sa.CheckConstraint(
            "status NOT IN ('skipped', 'failed') OR code IS NOT NULL", name=op.f("job_items_code_check")
        ),
        sa.CheckConstraint(
            "to_size IS NULL OR from_size IS NULL OR to_size >= from_size", name=op.f("job_items_growth_check")
        ),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("job_items_job_id_fkey"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "volume_id", name=op.f("job_items_pkey")),
    )
    op.create_index(
        "job_items_claimed", "job_items", ["job_id", "lane_id"], postgresql_where=sa.text("status = 'claimed'")
    )
    op.create_index(
        "job_items_failed", "job_items", ["job_id", "volume_id"], postgresql_where=sa.text("status = 'failed'")
    )
    op.create_index(
        "job_items_waiting",
        "job_items",
        ["job_id", "due_at", "volume_id"],
        postgresql_where=sa.text("status = 'pending'"),
    )
    op.create_index(
        "jobs_delegated", "jobs", ["id"], postgresql_where=sa.text("status = 'running' AND lease_expires_at IS NULL")
    )
    op.create_index(
        "jobs_live_of_snapshot",
        "jobs",
        ["snapshot_id"],
        postgresql_where=sa.text("snapshot_id IS NOT NULL AND status IN ('queued', 'running')"),
    )
    op.create_index("jobs_ended", "jobs", ["finished_at"], postgresql_where=sa.text("finished_at IS NOT NULL"))
    op.create_index(
        "jobs_retry_of", "jobs", ["retry_of"], unique=True, postgresql_where=sa.text("retry_of IS NOT NULL")
    )
    op.create_index(
        "jobs_scheduled",
        "jobs",
        ["schedule_id", "scheduled_for"],
        unique=True,
        postgresql_where=sa.text("schedule_id IS NOT NULL"),
    )
    op.create_index(
        "jobs_notable", "jobs", ["status", "id"], postgresql_where=sa.text("status NOT IN ('queued', 'succeeded')")
    )
    # Leave free space in each page, so that an update that changes no indexed column, such as one of the size, stays in
    # its page and writes no index entry (heap-only tuples).
    op.execute("ALTER TABLE volumes SET (fillfactor = 80)")
    op.create_table(
        "counters",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("counters_pkey")),
    )
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
    for table in TABLES:
        op.drop_table(table)
