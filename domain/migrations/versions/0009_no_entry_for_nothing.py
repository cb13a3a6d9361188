"""Two unique keys that had an entry for each job are no more: those of 0008 hold the few jobs that they are about."""

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_constraint("jobs_retry_of_key", "jobs")
    op.drop_constraint("jobs_schedule_id_scheduled_for_key", "jobs")


def downgrade() -> None:
    op.create_unique_constraint("jobs_retry_of_key", "jobs", ["retry_of"])
    op.create_unique_constraint("jobs_schedule_id_scheduled_for_key", "jobs", ["schedule_id", "scheduled_for"])
