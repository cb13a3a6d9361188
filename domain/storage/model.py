"""The tables of the installation, of its backends, and of the workers that serve them."""

from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import ARRAY, ColumnElement, Text, exists, func, text
from sqlalchemy.orm import Mapped, mapped_column

from domain.db.base import Base
from domain.db.sql import from_now

#: Seconds between two looks of a worker at its backends.
LOOK_SECONDS: Final = 5.0
#: How long a backend may take to answer one question of a look, in seconds. A look asks up to two.
ANSWER_SECONDS: Final = 5.0
#: How long an announcement is valid, in seconds: two looks at storage that does not answer.
_LIVE_SECONDS: Final = 2 * (LOOK_SECONDS + 2 * ANSWER_SECONDS)
#: What the jobs of a node have in place of a backend's name: this, and the name of the node.
NODE_PREFIX: Final = "node:"


class Installation(Base):
    """The single row that names this installation. Several may share a Redis, or find each other's disks."""

    __tablename__ = "installation"

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=text("gen_random_uuid()"))


class Backend(Base):
    """One storage backend. Sizes are in bytes."""

    __tablename__ = "backends"

    name: Mapped[str] = mapped_column(primary_key=True)
    driver: Mapped[str]
    #: Its place among the backends of the process that registered it; the first is the default.
    position: Mapped[int]
    #: The content of the identity file at its place; None until a worker has served it, or if it has no place.
    identity: Mapped[str | None]
    #: The path of a volume's bytes, with ``{id}`` for the volume's id.
    path_pattern: Mapped[str | None]
    total: Mapped[int | None]
    used: Mapped[int | None]
    #: Bytes that can still be written.
    free: Mapped[int | None]
    measured_at: Mapped[datetime | None]
    #: How many times ``total`` it may promise to volumes.
    overcommit: Mapped[float] = mapped_column(server_default=text("20"))
    #: The sum of the sizes of its volumes, at most about a minute old.
    promised: Mapped[int | None]
    promised_at: Mapped[datetime | None]
    served_since: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class BackendServer(Base):
    """A worker that has a backend among its settings, and why it does not serve it, if so."""

    __tablename__ = "backend_servers"

    backend: Mapped[str] = mapped_column(primary_key=True)
    worker_id: Mapped[UUID] = mapped_column(primary_key=True)
    host: Mapped[str]
    problem: Mapped[str | None]
    #: Since when it serves the backend, or has the problem.
    since: Mapped[datetime] = mapped_column(server_default=func.now())
    seen_at: Mapped[datetime] = mapped_column(server_default=func.now())
    #: The file systems that it can make there; None from workers of versions that know none.
    filesystems: Mapped[list[str] | None] = mapped_column(ARRAY(Text))


def is_unserved() -> ColumnElement[bool]:
    """Return the condition that no live worker serves a backend."""
    serves = (BackendServer.backend == Backend.name) & BackendServer.problem.is_(None)
    return ~exists().where(serves, is_live())


def is_live() -> ColumnElement[bool]:
    """Return the condition that a worker's announcement about a backend is still valid."""
    return BackendServer.seen_at > from_now(-_LIVE_SECONDS)
