"""The table of keys, the roles, and the principal that a request acts for."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Final
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, LargeBinary, func
from sqlalchemy.orm import Mapped, mapped_column

from domain.access.secret import Proof
from domain.db.base import Base, Entity, enum_text, project_column
from domain.projects.model import ProjectRef

MAX_NAME: Final = 64


class Role(StrEnum):
    """What a key may do; each role may also do what the ones before it may.

    VIEWER reads. OPERATOR creates, expands, and takes snapshots. OWNER also deletes and restores, does so in bulk and
    by schedules, and manages keys: all in the project of the key. SYSTEM may do so in every project, manages projects
    and their limits, and sees the state of the installation.
    """

    VIEWER = "viewer"
    OPERATOR = "operator"
    OWNER = "owner"
    SYSTEM = "system"

    def includes(self, other: "Role") -> bool:
        """Return whether this role may do what the other one may."""
        return _RANKS[self] >= _RANKS[other]


_RANKS: Final = {role: rank for rank, role in enumerate(Role)}
_ROLES: Final = ", ".join(f"'{role}'" for role in Role)


class ApiKey(Entity):
    """One key. Its text is not stored, only the hash of it."""

    __tablename__ = "api_keys"
    __table_args__ = (
        CheckConstraint(f"role IN ({_ROLES})", name="role"),
        CheckConstraint(f"length(name) BETWEEN 1 AND {MAX_NAME}", name="name"),
    )

    #: The part of the text that names the key without giving it away.
    public_id: Mapped[str] = mapped_column(unique=True)
    digest: Mapped[bytes] = mapped_column(LargeBinary)
    #: Who uses the key; kept with what they do. A key that replaces another one has the same name.
    name: Mapped[str]
    role: Mapped[Role] = mapped_column(enum_text(Role))
    project_id: Mapped[UUID] = project_column(ForeignKey("projects.id"))
    created_by: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    #: Within a minute.
    last_used_at: Mapped[datetime | None]


class Session(Base):
    """A browser in which somebody has signed in with a key. Its token is not stored, only the hash of it."""

    __tablename__ = "sessions"

    digest: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    key_id: Mapped[UUID] = mapped_column(ForeignKey("api_keys.id"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    #: Within a minute.
    last_used_at: Mapped[datetime] = mapped_column(server_default=func.now())


@dataclass(frozen=True)
class Principal:
    """Who a request acts for: the user of a key, in a project."""

    key_id: UUID
    name: str
    role: Role
    #: That of the key, or the one that the request of a system key names.
    project: ProjectRef
    #: Finds out whether the key is still valid.
    proof: Proof = field(repr=False)
    #: The hash of the session's token; None if the request sends the key itself.
    session: bytes | None = field(default=None, repr=False)

    @property
    def counted_project(self) -> UUID | None:
        """The project whose limits of requests it shares; None for a system key, which no project may hold up."""
        return None if self.role is Role.SYSTEM else self.project.id
