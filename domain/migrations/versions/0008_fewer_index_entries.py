"""Indexes of jobs that hold only what they are asked for: each change of a job writes an entry into every one of them.

The unique ones had an entry for each job that is no retry, and that no schedule has asked for. New is the one for lists
of what failed, or is running, among a million that succeeded. Built while workers write: the table may be large.
"""

import sqlalchemy as sa
from alembic import op

from domain.migrations.online import create_index_online, drop_index_online

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_RETRY = sa.text("retry_of IS NOT NULL")
_SCHEDULED = sa.text("schedule_id IS NOT NULL")
_NOTABLE = sa.text("status NOT IN ('queued', 'succeeded')")


def upgrade() -> None:
    create_index_online(op, "jobs_retry_of", "jobs", ["retry_of"], where=_RETRY, unique=True)
    create_index_online(op, "jobs_scheduled", "jobs", ["schedule_id", "scheduled_for"], where=_SCHEDULED, unique=True)
    create_index_online(op, "jobs_notable", "jobs", ["status", "id"], where=_NOTABLE)


def downgrade() -> None:
    for index in ("jobs_notable", "jobs_scheduled", "jobs_retry_of"):
        drop_index_online(op, index, "jobs")
