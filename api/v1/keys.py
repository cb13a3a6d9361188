"""Routes of keys: those of the project of the request, and for system keys also the system keys made in it."""

from datetime import timedelta
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query

from api.access import require_role
from api.dependencies import ActorDep, PrincipalDep, ServicesDep
from api.openapi import BODY, errors
from api.schemas.keys import CreatedKeyOut, KeyIn, KeyOut, RotateIn
from api.schemas.pagination import PageQuery, Paginated, paginated_response
from domain.access.model import Principal, Role
from domain.access.repository import KeyScope
from domain.errors import BadCursor, KeyNotFound

router = APIRouter(prefix="/keys", tags=["keys"])


@router.post("", status_code=201, summary="Create a key", responses=errors(*BODY))
async def create_key(body: KeyIn, services: ServicesDep, principal: PrincipalDep, actor: ActorDep) -> CreatedKeyOut:
    """Create a key for the project. The response has its text, which is not stored and cannot be read again."""
    require_role(principal, body.role)
    return CreatedKeyOut.from_created(await services.keys.create(body.new_key(), actor=actor))


@router.get("", summary="List keys", responses=errors(BadCursor))
async def list_keys(
    query: Annotated[PageQuery, Query()], services: ServicesDep, principal: PrincipalDep
) -> Paginated[KeyOut]:
    """List the keys of the project, newest first, without their texts; those that are revoked or expired too."""
    page = await services.keys.list_keys(query.page_of("keys", principal.project.id), _scope(principal))
    return paginated_response(page, KeyOut.from_row)


@router.post("/{key_id}/rotate", status_code=201, summary="Replace a key", responses=errors(*BODY, KeyNotFound))
async def rotate_key(
    key_id: UUID, body: RotateIn, services: ServicesDep, principal: PrincipalDep, actor: ActorDep
) -> CreatedKeyOut:
    """Create a key with the same name, role and project. The old one expires when the overlap has passed."""
    overlap = timedelta(hours=body.overlap_hours)
    created = await services.keys.rotate(key_id, overlap=overlap, scope=_scope(principal), actor=actor)
    return CreatedKeyOut.from_created(created)


@router.delete("/{key_id}", summary="Revoke a key", responses=errors(KeyNotFound))
async def revoke_key(key_id: UUID, services: ServicesDep, principal: PrincipalDep, actor: ActorDep) -> KeyOut:
    """Revoke a key for good. Within five seconds no process accepts it, and its open streams have ended."""
    return KeyOut.from_row(await services.keys.revoke(key_id, scope=_scope(principal), actor=actor))


def _scope(principal: Principal) -> KeyScope:
    return KeyScope(principal.project.id, with_system=principal.role is Role.SYSTEM)
