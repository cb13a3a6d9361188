"""A constraint that an index of the revision before replaces, and a storage parameter."""

from alembic import op

revision = "t4"
down_revision = "t3"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_constraint("test_notes_note_key", "test_notes")
    op.execute("ALTER TABLE jobs SET (fillfactor = 90)")


def downgrade() -> None:
    op.execute("ALTER TABLE jobs RESET (fillfactor)")
    op.create_unique_constraint("test_notes_note_key", "test_notes", ["note"])
