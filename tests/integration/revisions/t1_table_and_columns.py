"""A table with a foreign key, and columns of tables that running code writes to."""

import sqlalchemy as sa
from alembic import op

from domain.db.database import known_revisions

revision = "t1"
down_revision = known_revisions()[-1]
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "test_notes",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("note", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="test_notes_job_id_fkey", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="test_notes_pkey"),
        sa.UniqueConstraint("note", name="test_notes_note_key"),
    )
    since = sa.Column("test_since", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False)
    op.add_column("workers", since)
    op.add_column("workers", sa.Column("test_delay", sa.Float(), server_default=sa.text("0"), nullable=False))
    op.add_column("jobs", sa.Column("test_hidden_at", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    op.drop_column("jobs", "test_hidden_at")
    op.drop_column("workers", "test_delay")
    op.drop_column("workers", "test_since")
    op.drop_table("test_notes")
