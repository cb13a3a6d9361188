"""The history of volumes."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "volume_samples",
        sa.Column("volume_id", sa.Uuid(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("used", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("volume_id", "at", name=op.f("volume_samples_pkey")),
    )
    op.create_index("volume_samples_at_idx", "volume_samples", ["at"], postgresql_using="brin")


def downgrade() -> None:
    op.drop_table("volume_samples")
