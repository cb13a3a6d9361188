"""Leave room in the pages of volumes: so what changes no index, as growing does, writes none.

It says how pages are filled from now on, and keeps nobody from reading or writing; full ones get room as their rows
move on.
"""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE volumes SET (fillfactor = 80)")


def downgrade() -> None:
    op.execute("ALTER TABLE volumes RESET (fillfactor)")
