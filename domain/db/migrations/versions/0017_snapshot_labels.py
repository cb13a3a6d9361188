"""The index of the labels of snapshots."""

from alembic import op

from domain.db.migrations.online import create_index_online, drop_index_online

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    create_index_online(op, "snapshots_labels", "snapshots", ["labels"], using="gin")


def downgrade() -> None:
    drop_index_online(op, "snapshots_labels", "snapshots")
