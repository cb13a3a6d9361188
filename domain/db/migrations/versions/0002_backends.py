"""Backends and who serves them, and the name of this installation."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "installation",
        sa.Column("id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("installation_pkey")),
    )
    op.execute("INSERT INTO installation DEFAULT VALUES")
    op.create_table(
        "backends",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("driver", sa.Text(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("identity", sa.Text(), nullable=True),
        sa.Column("path_pattern", sa.Text(), nullable=True),
        sa.Column("total", sa.BigInteger(), nullable=True),
        sa.Column("used", sa.BigInteger(), nullable=True),
        sa.Column("free", sa.BigInteger(), nullable=True),
        sa.Column("measured_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("overcommit", sa.Float(), server_default=sa.text("20"), nullable=False),
        sa.Column("promised", sa.BigInteger(), nullable=True),
        sa.Column("promised_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("served_since", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("backends_pkey")),
    )
    op.create_table(
        "backend_servers",
        sa.Column("backend", sa.Text(), nullable=False),
        sa.Column("worker_id", sa.Uuid(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("problem", sa.Text(), nullable=True),
        sa.Column("since", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("backend", "worker_id", name=op.f("backend_servers_pkey")),
    )
    op.add_column("job_items", sa.Column("backend", sa.Text(), server_default="", nullable=False))
    _index_waiting_items("job_id", "backend", "due_at", "volume_id")


def _index_waiting_items(*columns: str) -> None:
    op.drop_index("job_items_waiting", "job_items")
    waiting = sa.text("status = 'pending'")
    op.create_index("job_items_waiting", "job_items", list(columns), postgresql_where=waiting)


def downgrade() -> None:
    _index_waiting_items("job_id", "due_at", "volume_id")
    op.drop_column("job_items", "backend")
    for table in ("backend_servers", "backends", "installation"):
        op.drop_table(table)
