"""Routes of projects."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query

from api.dependencies import ActorDep, PrincipalDep, ServicesDep
from api.openapi import BODY, errors
from api.schemas.pagination import PageQuery, Paginated, paginated_response
from api.schemas.projects import LimitsIn, ProjectIn, ProjectOut
from domain.access.model import Principal, Role
from domain.errors import BadCursor, NameTaken, ProjectNotFound

router = APIRouter(prefix="/projects", tags=["projects"])


@router.post("", status_code=201, summary="Create a project", responses=errors(*BODY, NameTaken))
async def create_project(body: ProjectIn, services: ServicesDep, actor: ActorDep) -> ProjectOut:
    """Create a project. Keys for it are made with its name in `Cistern-Project`."""
    return ProjectOut.of(*await services.projects.create(body.new_project(), actor=actor))


@router.get("", summary="List projects", responses=errors(BadCursor))
async def list_projects(
    query: Annotated[PageQuery, Query()], services: ServicesDep, principal: PrincipalDep
) -> Paginated[ProjectOut]:
    """List projects, newest first: all for system keys, the own one for others."""
    only = _only(principal)
    page, usage = await services.projects.list_projects(query.page_of("projects", only), only=only)
    return paginated_response(page, lambda project: ProjectOut.of(project, usage[project.id]))


@router.get("/{project_id}", summary="Get a project", responses=errors(ProjectNotFound))
async def get_project(project_id: UUID, services: ServicesDep, principal: PrincipalDep) -> ProjectOut:
    """Return a project with its limits and what it has."""
    if _only(principal) not in (None, project_id):
        raise ProjectNotFound(project_id)
    return ProjectOut.of(*await services.projects.get(project_id))


@router.patch("/{project_id}", summary="Change a project's limits", responses=errors(*BODY, ProjectNotFound))
async def update_project(project_id: UUID, body: LimitsIn, services: ServicesDep, actor: ActorDep) -> ProjectOut:
    """Change the limits that are given; null removes one. They hold for all requests within five seconds."""
    return ProjectOut.of(*await services.projects.change(project_id, body.limits(), actor=actor))


def _only(principal: Principal) -> UUID | None:
    """Return the project that the principal may see; None: all."""
    return None if principal.role is Role.SYSTEM else principal.project.id
