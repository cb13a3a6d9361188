"""Bulk snapshots: which snapshot an item is about, and which schedule a snapshot was made by.

No index for the retention of schedules: it asks by volume, and the unique key on volume and name answers that.
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("job_items", sa.Column("snapshot_id", sa.Uuid(), nullable=True))
    op.add_column("snapshots", sa.Column("schedule_id", sa.Uuid(), nullable=True))


def downgrade() -> None:
    op.drop_column("snapshots", "schedule_id")
    op.drop_column("job_items", "snapshot_id")
