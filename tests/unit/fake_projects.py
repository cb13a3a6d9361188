"""Fake service of projects: in memory, with the errors of the real one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from uuid import UUID

from uuid_utils.compat import uuid7

from domain.audit.model import Actor
from domain.db.base import DEFAULT_PROJECT
from domain.db.pagination import Page, PageRequest
from domain.errors import NameTaken, ProjectNotFound
from domain.projects.model import LIMITS, Project, ProjectRef
from domain.projects.quota import ProjectUsage
from domain.projects.service import NewProject
from tests.unit.fake_volumes import NOON, newest_first

EMPTY = ProjectUsage(0, 0, 0, 0)


def project_row(name: str, project_id: UUID | None = None, limits: Mapping[str, int | None] | None = None) -> Project:
    """Return a project as PostgreSQL would return it."""
    columns = dict.fromkeys(LIMITS) | dict(limits or {})
    return Project(id=project_id or uuid7(), name=name, created_by=None, created_at=NOON, **columns)


@dataclass
class FakeProjects:
    """Projects that are empty."""

    rows: dict[UUID, Project] = field(
        default_factory=lambda: {DEFAULT_PROJECT: project_row("default", DEFAULT_PROJECT)}
    )

    async def find(self, name: str) -> ProjectRef | None:
        """Return the project with a name."""
        return next(
            (ProjectRef(row.id, name, is_limited=False) for row in self.rows.values() if row.name == name), None
        )

    async def list_projects(
        self, request: PageRequest, *, only: UUID | None
    ) -> tuple[Page[Project], Mapping[UUID, ProjectUsage]]:
        """List all projects, or only one."""
        return newest_first(self.rows, lambda row: only in (None, row.id), request), dict.fromkeys(self.rows, EMPTY)

    async def get(self, project_id: UUID) -> tuple[Project, ProjectUsage]:
        """Return a project."""
        if project_id not in self.rows:
            raise ProjectNotFound(project_id)
        return self.rows[project_id], EMPTY

    async def create(self, new: NewProject, *, actor: Actor) -> tuple[Project, ProjectUsage]:
        """Add a project."""
        if await self.find(new.name) is not None:
            raise NameTaken(field="name")
        row = project_row(new.name, limits=new.limits)
        row.created_by = actor.name
        self.rows[row.id] = row
        return row, EMPTY

    async def change(
        self, project_id: UUID, limits: Mapping[str, int | None], *, actor: Actor
    ) -> tuple[Project, ProjectUsage]:
        """Change limits."""
        row, _ = await self.get(project_id)
        for name, value in limits.items():
            setattr(row, name, value)
        return row, EMPTY
