"""Routes of keys."""

from datetime import timedelta
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query

from api.dependencies import ActorDep, ServicesDep
from api.openapi import BODY, errors
from api.schemas.keys import CreatedKeyOut, KeyIn, KeyOut, RotateIn
from api.schemas.pagination import PageQuery, Paginated, paginated_response
from domain.errors import BadCursor, KeyNotFound

router = APIRouter(prefix="/keys", tags=["keys"])


@router.post("", status_code=201, summary="Create a key", responses=errors(*BODY))
async def create_key(body: KeyIn, services: ServicesDep, actor: ActorDep) -> CreatedKeyOut:
    """Create a key. The response has its text, which is not stored and cannot be read again."""
    created = await services.keys.create(body.new_key(), actor=actor)
    return CreatedKeyOut.from_created(created)


@router.get("", summary="List keys", responses=errors(BadCursor))
async def list_keys(query: Annotated[PageQuery, Query()], services: ServicesDep) -> Paginated[KeyOut]:
    """List keys, newest first, without their texts; those that are revoked or expired too."""
    return paginated_response(await services.keys.list_keys(query.page_of("keys")), KeyOut.from_row)


@router.post("/{key_id}/rotate", status_code=201, summary="Replace a key", responses=errors(*BODY, KeyNotFound))
async def rotate_key(key_id: UUID, body: RotateIn, services: ServicesDep, actor: ActorDep) -> CreatedKeyOut:
    """Create a key with the same name and role. The old one expires when the overlap has passed."""
    overlap = timedelta(hours=body.overlap_hours)
    created = await services.keys.rotate(key_id, overlap=overlap, actor=actor)
    return CreatedKeyOut.from_created(created)


@router.delete("/{key_id}", summary="Revoke a key", responses=errors(KeyNotFound))
async def revoke_key(key_id: UUID, services: ServicesDep, actor: ActorDep) -> KeyOut:
    """Revoke a key for good. Within five seconds no process accepts it, and its open streams have ended."""
    return KeyOut.from_row(await services.keys.revoke(key_id, actor=actor))
