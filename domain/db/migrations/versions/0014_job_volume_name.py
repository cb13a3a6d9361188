"""The name of the volume of a job."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("volume_name", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("jobs", "volume_name")
