"""A partial index on a table that may be large, built while workers write to it."""

import sqlalchemy as sa
from alembic import op

from domain.db.migrations.online import create_index_online, drop_index_online

revision = "t2"
down_revision = "t1"
branch_labels = None
depends_on = None


def upgrade() -> None:
    create_index_online(op, "test_jobs_hidden", "jobs", ["test_hidden_at"], where=sa.text("test_hidden_at IS NOT NULL"))


def downgrade() -> None:
    drop_index_online(op, "test_jobs_hidden", "jobs")
