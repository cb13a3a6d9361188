"""Builders for tests of projects: a project, its keys, and clients that send one of them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import UUID

import httpx
from fastapi import FastAPI

from domain.access.model import Role
from domain.access.service import NewKey
from domain.audit.model import Actor
from domain.jobs.acceptance import RequestOrigin
from domain.projects.service import NewProject
from domain.services import Services
from tests.support.http import client_of


@dataclass(frozen=True)
class ProjectOfTest:
    """A project, and a key with the role owner in it."""

    id: UUID
    name: str
    key: str

    def client(self, app: FastAPI) -> "httpx.AsyncClient":
        """Return a client that sends the key."""
        return httpx.AsyncClient(
            transport=httpx.ASGITransport(app),
            base_url="http://localhost",
            headers={"Authorization": f"Bearer {self.key}"},
        )

    @property
    def origin(self) -> RequestOrigin:
        """Return the origin of a request in the project, whose limits count."""
        return RequestOrigin(Actor("owner", project_id=self.id, is_limited=True))


async def a_project(services: Services, name: str, **limits: int | None) -> ProjectOfTest:
    """Create a project with a key of an owner."""
    project, _ = await services.projects.create(NewProject(name, limits))
    created = await services.keys.create(
        NewKey(f"{name}-owner", Role.OWNER), actor=Actor("tests", project_id=project.id)
    )
    return ProjectOfTest(project.id, name, created.text)


@asynccontextmanager
async def two_projects(services: Services, app: FastAPI) -> AsyncIterator[tuple[httpx.AsyncClient, httpx.AsyncClient]]:
    """Yield clients of two projects; the application is started."""
    one, other = await a_project(services, "one"), await a_project(services, "other")
    async with client_of(app), one.client(app) as first, other.client(app) as second:
        yield first, second
