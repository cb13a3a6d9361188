"""Projects and their limits."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_DEFAULT = "00000000-0000-7000-8000-000000000001"
_OWNED = ("volumes", "snapshots", "jobs", "schedules")


def upgrade() -> None:
    op.create_table(
        "projects",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("max_volumes", sa.BigInteger(), nullable=True),
        sa.Column("max_bytes", sa.BigInteger(), nullable=True),
        sa.Column("max_snapshots", sa.BigInteger(), nullable=True),
        sa.Column("max_queued_jobs", sa.BigInteger(), nullable=True),
        sa.Column("created_by", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("length(name) BETWEEN 1 AND 64", name=op.f("projects_name_check")),
        sa.CheckConstraint(
            "least(max_volumes, max_bytes, max_snapshots, max_queued_jobs) >= 0", name=op.f("projects_limits_check")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("projects_pkey")),
        sa.UniqueConstraint("name", name=op.f("projects_name_key")),
    )
    op.execute(f"INSERT INTO projects (id, name) VALUES ('{_DEFAULT}', 'default')")  # noqa: S608 (a constant)
    for table in (*_OWNED, "api_keys"):
        # The default is for processes of the version before, and costs no rewriting of the table.
        default = sa.text(f"'{_DEFAULT}'")
        op.add_column(table, sa.Column("project_id", sa.Uuid(), server_default=default, nullable=False))
    op.create_foreign_key(op.f("api_keys_project_id_fkey"), "api_keys", "projects", ["project_id"], ["id"])
    op.execute(f"UPDATE idempotency_keys SET caller = '{_DEFAULT}:' || caller")  # noqa: S608 (a constant)
    op.add_column("audit_entries", sa.Column("project_id", sa.Uuid(), nullable=True))
    op.add_column("volumes", sa.Column("growing_to", sa.BigInteger(), nullable=True))
    op.add_column("schedules", sa.Column("owner", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("schedules", "owner")
    op.drop_column("volumes", "growing_to")
    op.drop_column("audit_entries", "project_id")
    for table in (*_OWNED, "api_keys"):
        op.drop_column(table, "project_id")
    op.drop_table("projects")
