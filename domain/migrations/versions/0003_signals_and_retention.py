"""Counters to look at, since when a worker has been beating without a gap, and jobs that are being pruned."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "counters",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("counters_pkey")),
    )
    steady_since = sa.Column(
        "steady_since", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
    )
    op.add_column("workers", steady_since)
    op.add_column("workers", sa.Column("renews_within", sa.Float(), server_default=sa.text("0"), nullable=False))
    op.add_column("jobs", sa.Column("pruned_at", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    op.drop_column("jobs", "pruned_at")
    op.drop_column("workers", "renews_within")
    op.drop_column("workers", "steady_since")
    op.drop_table("counters")
