"""The spine: volumes, snapshots, jobs and workers."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


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
        sa.Column("rings", sa.BigInteger(), nullable=False),
        sa.Column("rung_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=True),
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
        sa.CheckConstraint("attempt >= 0 AND max_attempts >= 1 AND rings >= 0", name=op.f("jobs_counters_check")),
        sa.ForeignKeyConstraint(["parent_id"], ["jobs.id"], name=op.f("jobs_parent_id_fkey"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["retry_of"], ["jobs.id"], name=op.f("jobs_retry_of_fkey"), ondelete="SET NULL"),
        sa.PrimaryKeyConstraint("id", name=op.f("jobs_pkey")),
        sa.UniqueConstraint("retry_of", name=op.f("jobs_retry_of_key")),
        sa.UniqueConstraint("schedule_id", "scheduled_for", name=op.f("jobs_schedule_id_scheduled_for_key")),
    )
    op.create_index("jobs_due", "jobs", ["run_at"], postgresql_where=sa.text("status = 'queued' AND rung_at IS NULL"))
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
        "jobs_rung", "jobs", ["rung_at"], postgresql_where=sa.text("status = 'queued' AND rung_at IS NOT NULL")
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


def downgrade() -> None:
    op.drop_table("snapshots")
    op.drop_table("workers")
    op.drop_index("volumes_labels", table_name="volumes", postgresql_using="gin")
    op.drop_table("volumes")
    op.drop_index("jobs_rung", table_name="jobs", postgresql_where=sa.text("status = 'queued' AND rung_at IS NOT NULL"))
    op.drop_index(
        "jobs_one_live_per_volume", table_name="jobs", postgresql_where=sa.text("status IN ('queued', 'running')")
    )
    op.drop_index("jobs_of_volume", table_name="jobs")
    op.drop_index("jobs_of_parent", table_name="jobs", postgresql_where=sa.text("parent_id IS NOT NULL"))
    op.drop_index("jobs_leased", table_name="jobs", postgresql_where=sa.text("lease_expires_at IS NOT NULL"))
    op.drop_index("jobs_due", table_name="jobs", postgresql_where=sa.text("status = 'queued' AND rung_at IS NULL"))
    op.drop_table("jobs")
