"""The ledger of bulk jobs, and idempotency keys."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
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
        sa.Column("ring", sa.BigInteger(), nullable=True),
        sa.Column("from_size", sa.BigInteger(), nullable=True),
        sa.Column("to_size", sa.BigInteger(), nullable=True),
        sa.Column("used", sa.BigInteger(), nullable=True),
        sa.Column("code", sa.Text(), nullable=True),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.Column("busy_since", sa.DateTime(timezone=True), nullable=True),
        sa.Column("due_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "status <> 'claimed' OR (lane_id IS NOT NULL AND ring IS NOT NULL)", name=op.f("job_items_claimed_check")
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
        "jobs_handed_over", "jobs", ["id"], postgresql_where=sa.text("status = 'running' AND lease_expires_at IS NULL")
    )
    op.create_index(
        "jobs_live_of_snapshot",
        "jobs",
        ["snapshot_id"],
        postgresql_where=sa.text("snapshot_id IS NOT NULL AND status IN ('queued', 'running')"),
    )


def downgrade() -> None:
    op.drop_index(
        "jobs_live_of_snapshot",
        table_name="jobs",
        postgresql_where=sa.text("snapshot_id IS NOT NULL AND status IN ('queued', 'running')"),
    )
    op.drop_index(
        "jobs_handed_over",
        table_name="jobs",
        postgresql_where=sa.text("status = 'running' AND lease_expires_at IS NULL"),
    )
    op.drop_index("job_items_waiting", table_name="job_items", postgresql_where=sa.text("status = 'pending'"))
    op.drop_index("job_items_failed", table_name="job_items", postgresql_where=sa.text("status = 'failed'"))
    op.drop_index("job_items_claimed", table_name="job_items", postgresql_where=sa.text("status = 'claimed'"))
    op.drop_table("job_items")
    op.drop_index(op.f("idempotency_keys_expires_at_idx"), table_name="idempotency_keys")
    op.drop_table("idempotency_keys")
