"""The number of slots of a worker."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("workers", sa.Column("slots", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    op.drop_column("workers", "slots")
