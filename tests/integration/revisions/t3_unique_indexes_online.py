"""Several online indexes in one revision; a unique one among them."""

import sqlalchemy as sa
from alembic import op

from domain.db.migrations.online import create_index_online, drop_index_online

revision = "t3"
down_revision = "t2"
branch_labels = None
depends_on = None


def upgrade() -> None:
    create_index_online(op, "test_notes_one", "test_notes", ["note"], where=sa.text("note IS NOT NULL"), unique=True)
    create_index_online(op, "test_jobs_failed", "jobs", ["status", "id"], where=sa.text("status = 'failed'"))


def downgrade() -> None:
    for index, table in (("test_jobs_failed", "jobs"), ("test_notes_one", "test_notes")):
        drop_index_online(op, index, table)
