"""Projects: create, list and change them, and find one by its name."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from uuid_utils.compat import uuid7

from domain.audit.model import NOBODY, Actor, new_entry
from domain.audit.repository import add_entries
from domain.db.database import Database
from domain.db.pagination import Page, PageRequest
from domain.errors import NameTaken, ProjectNotFound
from domain.projects.model import LIMITS, Project, ProjectRef
from domain.projects.quota import ProjectUsage, usage_of

#: How long the id and the limits of a project are believed without asking PostgreSQL.
CACHE_SECONDS: Final = 5.0


@dataclass(frozen=True)
class NewProject:
    """A project that is wanted; ``limits`` by the names in `LIMITS`."""

    name: str
    limits: Mapping[str, int | None] = field(default_factory=dict)


class ProjectService:
    """The projects, for the API and the command line."""

    def __init__(self, database: Database) -> None:
        self._database = database
        #: By name, each with a time of the monotonic clock until which it is believed.
        self._cache: dict[str, tuple[ProjectRef, float]] = {}

    async def find(self, name: str) -> ProjectRef | None:
        """Return the project with a name, as of at most `CACHE_SECONDS` ago; None if there is none.

        Raises:
            DatabaseUnavailable: PostgreSQL does not answer.
        """
        found, until = self._cache.get(name, (None, 0.0))
        if until > time.monotonic():
            return found
        until = time.monotonic() + CACHE_SECONDS
        async with self._database.transaction() as session:
            project = await session.scalar(select(Project).where(Project.name == name))
            if project is None:  # not kept: any number of names could be asked for
                return None
            found = ProjectRef(project.id, project.name, project.is_limited)
        self._cache[name] = found, until
        return found

    async def list_projects(
        self, request: PageRequest, *, only: UUID | None
    ) -> tuple[Page[Project], Mapping[UUID, ProjectUsage]]:
        """List projects, newest first, with what each has; ``only`` one of them, or all for None.

        Raises:
            BadCursor: the cursor belongs to another list.
        """
        query = select(Project).order_by(Project.id.desc()).limit(request.limit + 1)
        if only is not None:
            query = query.where(Project.id == only)
        if (before := request.before) is not None:
            query = query.where(Project.id < before)
        async with self._database.transaction() as session:
            page = request.page((await session.scalars(query)).all())
            return page, await usage_of(session, [project.id for project in page.items])

    async def get(self, project_id: UUID) -> tuple[Project, ProjectUsage]:
        """Read one project, and what it has.

        Raises:
            ProjectNotFound: no such project.
        """
        async with self._database.transaction() as session:
            return await _with_usage(session, _require(await session.get(Project, project_id), project_id))

    async def create(self, new: NewProject, *, actor: Actor = NOBODY) -> tuple[Project, ProjectUsage]:
        """Create a project.

        Raises:
            NameTaken: another project has the name.
        """
        limits = dict.fromkeys(LIMITS) | dict(new.limits)
        async with self._database.transaction() as session:
            project = Project(id=uuid7(), name=new.name, created_by=actor.name, **limits)
            session.add(project)
            await _flush(session, new.name)
            await session.refresh(project)
            await _record(session, "project.create", project, actor, dict(new.limits))
            return await _with_usage(session, project)

    async def change(
        self, project_id: UUID, limits: Mapping[str, int | None], *, actor: Actor = NOBODY
    ) -> tuple[Project, ProjectUsage]:
        """Change the limits that are given; None removes one. What a project has already, it keeps.

        All processes know whether there are limits within `CACHE_SECONDS`.

        Raises:
            ProjectNotFound: no such project.
        """
        async with self._database.transaction() as session:
            project = _require(await session.get(Project, project_id, with_for_update={"key_share": True}), project_id)
            for name, value in limits.items():
                setattr(project, name, value)
            await session.flush()
            await _record(session, "project.update", project, actor, dict(limits))
            found = await _with_usage(session, project)
        self._cache.clear()
        return found


def _require(project: Project | None, project_id: UUID) -> Project:
    if project is None:
        raise ProjectNotFound(project_id)
    return project


async def _flush(session: AsyncSession, name: str) -> None:
    try:
        await session.flush()
    except IntegrityError as error:
        if "projects_name_key" in str(error.orig):
            raise NameTaken(f"There is already a project named {name!r}.", field="name") from error
        raise


async def _with_usage(session: AsyncSession, project: Project) -> tuple[Project, ProjectUsage]:
    return project, (await usage_of(session, [project.id]))[project.id]


async def _record(session: AsyncSession, action: str, project: Project, actor: Actor, limits: dict[str, Any]) -> None:
    entry = new_entry(actor, action, subject_id=project.id, subject_name=project.name, details=limits)
    await add_entries(session, [entry])
