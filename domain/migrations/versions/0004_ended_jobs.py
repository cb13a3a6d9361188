"""Find ended jobs by their end, to prune them. Built while workers write: the table may be large."""

import sqlalchemy as sa
from alembic import op

from domain.migrations.online import create_index_online, drop_index_online

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    create_index_online(op, "jobs_ended", "jobs", ["finished_at"], where=sa.text("finished_at IS NOT NULL"))


def downgrade() -> None:
    drop_index_online(op, "jobs_ended", "jobs")
