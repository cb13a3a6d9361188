"""What every route shares: the services, and the check of a request's form. No route gets a session."""

import re
from typing import Annotated, Final, cast
from uuid import UUID

from fastapi import Depends, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.types import Scope

from domain.access.model import Principal
from domain.audit.model import Actor
from domain.services import Services

V0_PATH: Final = "/api/v0"
V1_PATH: Final = "/api/v1"

_JSON: Final = re.compile(r"application/(json|[a-z0-9.-]+\+json)\s*(;.*)?", re.IGNORECASE | re.ASCII)


# All dependencies are coroutines, although they await nothing: FastAPI would run plain functions in a thread.
async def _services(request: Request) -> Services:
    return cast("Services", request.app.state.services)


ServicesDep = Annotated[Services, Depends(_services)]


async def _principal(request: Request) -> Principal:
    return cast("Principal", request.state.principal)


#: Who the request acts for; only for routes that need a key.
PrincipalDep = Annotated[Principal, Depends(_principal)]


async def _project_id(principal: PrincipalDep) -> UUID:
    return principal.project.id


#: The project in which the request reads; changes have an `ActorDep` or an origin.
ProjectDep = Annotated[UUID, Depends(_project_id)]


def actor_of(scope: Scope, principal: Principal) -> Actor:
    """Return who sends a request, and for which project."""
    peer, project = scope.get("client"), principal.project
    address = peer[0] if peer else None
    request_id = scope["state"]["request_id"]
    return Actor(principal.name, principal.key_id, request_id, address, project.id, project.is_limited)


async def _actor(request: Request, principal: PrincipalDep) -> Actor:
    return actor_of(request.scope, principal)


#: Who sends the request, for changes that need no job.
ActorDep = Annotated[Actor, Depends(_actor)]


async def check_form(request: Request) -> None:
    """Reject what the route would ignore or misread; the application has this dependency for all of its routes.

    A filter that is silently ignored does harm. A route without query parameters rejects all of them here; one that has
    some rejects all others by their schema. A body must be declared as JSON: FastAPI would report a wrong value.
    """
    route: APIRoute = request.scope["route"]
    media_type = request.headers.get("Content-Type", "").strip()
    if request.query_params and not route.dependant.query_params:
        message = {"type": "extra_forbidden", "msg": "this route has no such parameter"}
        raise RequestValidationError([{**message, "loc": ("query", name)} for name in request.query_params])
    if route.body_field and await request.body() and not _JSON.fullmatch(media_type):
        raise HTTPException(415)
