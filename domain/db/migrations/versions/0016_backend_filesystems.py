"""The file systems that a worker can make on a backend."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("backend_servers", sa.Column("filesystems", sa.ARRAY(sa.Text()), nullable=True))


def downgrade() -> None:
    op.drop_column("backend_servers", "filesystems")
