"""Room for later versions of volumes on their pages.

The acceptance and the end of every job each write a new version of a volume's row. Where it fits on the same page,
PostgreSQL leaves all indexes of the table as they are (a heap-only update). A bulk job changes all volumes of a page in
one transaction, so each row needs room for one more version: hence 50. It costs up to twice the pages. Only pages that
are written from now on leave this room; full ones get it as their rows move to other pages.
"""

from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE volumes SET (fillfactor = 50)")


def downgrade() -> None:
    op.execute("ALTER TABLE volumes SET (fillfactor = 80)")
