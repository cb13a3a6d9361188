"""Volumes in use: file systems, attachments, the mounts of nodes; and what a snapshot is worth."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

_STATES = ("creating", "available", "expanding", "snapshotting", "restoring", "deleting")
_NEW = ("attaching", "detaching")
_VOLUME_COLUMNS = (
    ("filesystem", sa.Text()),
    ("filesystem_size", sa.BigInteger()),
    ("filesystem_used", sa.BigInteger()),
    ("inodes", sa.BigInteger()),
    ("inodes_used", sa.BigInteger()),
    ("filesystem_grown_to", sa.BigInteger()),
    ("filesystem_error", sa.Text()),
    ("source_snapshot_id", sa.Uuid()),
    ("source_volume_id", sa.Uuid()),
    ("grown_at", sa.DateTime(timezone=True)),
)


def upgrade() -> None:
    _allow_states(*_STATES, *_NEW, "error")
    for name, kind in _VOLUME_COLUMNS:
        op.add_column("volumes", sa.Column(name, kind, nullable=True))
    labels = sa.Column("labels", postgresql.JSONB(none_as_null=True), nullable=False, server_default=sa.text("'{}'"))
    op.add_column("snapshots", labels)
    op.add_column("snapshots", sa.Column("consistency", sa.Text(), nullable=True))
    op.add_column("workers", sa.Column("node", sa.Text(), nullable=True))
    _create_attachments()
    _create_mounts()


def _create_attachments() -> None:
    project = sa.text("'00000000-0000-7000-8000-000000000001'")
    op.create_table(
        "attachments",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("project_id", sa.Uuid(), server_default=project, nullable=False),
        sa.Column("volume_id", sa.Uuid(), nullable=False),
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column("mode", sa.String(32), nullable=False),
        sa.Column("path", sa.Text(), nullable=True),
        sa.Column("state", sa.String(32), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("state IN ('attaching', 'attached', 'detaching')", name=op.f("attachments_state_check")),
        sa.CheckConstraint("mode IN ('rw', 'ro')", name=op.f("attachments_mode_check")),
        sa.ForeignKeyConstraint(
            ["volume_id"], ["volumes.id"], name=op.f("attachments_volume_id_fkey"), ondelete="RESTRICT"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("attachments_pkey")),
        sa.UniqueConstraint("volume_id", "node", "holder", name=op.f("attachments_volume_id_node_holder_key")),
    )
    op.create_index("attachments_project_id_id_idx", "attachments", ["project_id", "id"])
    op.create_index("attachments_node_idx", "attachments", ["node"])


def _create_mounts() -> None:
    op.create_table(
        "mounts",
        sa.Column("volume_id", sa.Uuid(), nullable=False),
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("device", sa.Text(), nullable=True),
        sa.Column("path", sa.Text(), nullable=True),
        sa.Column("freeze_id", sa.Uuid(), nullable=True),
        sa.Column("freeze_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("freeze_state", sa.String(32), nullable=True),
        sa.ForeignKeyConstraint(["volume_id"], ["volumes.id"], name=op.f("mounts_volume_id_fkey"), ondelete="RESTRICT"),
        sa.PrimaryKeyConstraint("volume_id", name=op.f("mounts_pkey")),
    )
    op.create_index("mounts_node_idx", "mounts", ["node"])


def _allow_states(*allowed: str) -> None:
    states = ", ".join(f"'{state}'" for state in allowed)
    op.drop_constraint(op.f("volumes_state_check"), "volumes", type_="check")
    op.create_check_constraint(op.f("volumes_state_check"), "volumes", f"state IN ({states})")


def downgrade() -> None:
    op.drop_table("mounts")
    op.drop_table("attachments")
    op.drop_column("workers", "node")
    op.drop_column("snapshots", "consistency")
    op.drop_column("snapshots", "labels")
    for name, _ in _VOLUME_COLUMNS:
        op.drop_column("volumes", name)
    _allow_states(*_STATES, "error")
