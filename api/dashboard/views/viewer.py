"""Who looks at a page, and what they may do there."""

from dataclasses import dataclass
from typing import Self

from domain.access.model import Principal, Role


@dataclass(frozen=True)
class Viewer:
    """Who has signed in. Pages offer only what the role may do; the API checks it again."""

    name: str
    role: Role
    project: str
    has_session: bool

    @classmethod
    def of(cls, principal: Principal) -> Self:
        """Describe who a request acts for."""
        return cls(principal.name, principal.role, principal.project.name, principal.session is not None)

    @property
    def operates(self) -> bool:
        """Whether they may create, expand, and take snapshots."""
        return self.role.includes(Role.OPERATOR)

    @property
    def owns(self) -> bool:
        """Whether they may also delete and restore, change many volumes at once, and manage schedules and keys."""
        return self.role.includes(Role.OWNER)

    @property
    def is_system(self) -> bool:
        """Whether they see the whole installation."""
        return self.role is Role.SYSTEM
