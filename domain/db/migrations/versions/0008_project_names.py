"""Names are unique in their project, and no longer in all."""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

#: API processes of the version before cannot create volumes any more.
SAFE_WHILE_RUNNING = False


def upgrade() -> None:
    op.drop_constraint("volumes_name_key", "volumes")
    op.drop_constraint("schedules_name_key", "schedules")


def downgrade() -> None:
    op.create_unique_constraint("volumes_name_key", "volumes", ["name"])
    op.create_unique_constraint("schedules_name_key", "schedules", ["name"])
