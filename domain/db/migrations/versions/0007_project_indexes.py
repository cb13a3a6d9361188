"""Indexes of what is in a project, names that are unique in it included. Built online."""

from alembic import op
from sqlalchemy import text

from domain.db.migrations.online import create_index_online, drop_index_online

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_NOT_DEFAULT = text("project_id <> '00000000-0000-7000-8000-000000000001'")


def upgrade() -> None:
    create_index_online(op, "volumes_project_id_name_idx", "volumes", ["project_id", "name"], unique=True)
    create_index_online(op, "volumes_project_id_id_idx", "volumes", ["project_id", "id"])
    create_index_online(op, "snapshots_project_id_id_idx", "snapshots", ["project_id", "id"])
    create_index_online(op, "schedules_project_id_name_idx", "schedules", ["project_id", "name"], unique=True)
    create_index_online(op, "jobs_of_project", "jobs", ["project_id", "id"], where=_NOT_DEFAULT)


def downgrade() -> None:
    drop_index_online(op, "jobs_of_project", "jobs")
    drop_index_online(op, "schedules_project_id_name_idx", "schedules")
    drop_index_online(op, "snapshots_project_id_id_idx", "snapshots")
    drop_index_online(op, "volumes_project_id_id_idx", "volumes")
    drop_index_online(op, "volumes_project_id_name_idx", "volumes")
