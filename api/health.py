"""Is the process alive, and can it do its work? For whoever starts, watches and balances it."""

import asyncio
from typing import Final, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict

from api.dependencies import Front, NoQuery
from api.openapi import refusals
from domain.errors import DatabaseUnavailable, Unavailable
from domain.jobs.queue import QueueRefusesWrites
from domain.services import Services

_PATIENCE_SECONDS: Final = 3.0

RedisState = Literal["ok", "unavailable", "refuses-writes"]

router = APIRouter(tags=["health"], dependencies=[NoQuery])


class Alive(BaseModel):
    """The process answers."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"status": "alive"}]})

    status: Literal["alive"] = "alive"


class Ready(BaseModel):
    """What the process stands on. Without a Redis to write to it is degraded: it accepts jobs, and they start later."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"status": "ready", "postgresql": "ok", "redis": "ok"}]})

    status: Literal["ready", "degraded"]
    postgresql: Literal["ok"] = "ok"
    redis: RedisState


@router.get("/healthz", operation_id="check_alive", summary="Is the process alive?", responses=refusals())
async def check_alive() -> Alive:
    """Answer; nothing else is looked at."""
    return Alive()


@router.get(
    "/readyz",
    operation_id="check_ready",
    summary="Can the process do its work?",
    responses=refusals(DatabaseUnavailable),
)
async def check_ready(services: Front) -> Ready:
    """Ask PostgreSQL and Redis for a sign of life."""
    redis, _ = await asyncio.gather(_redis_state(services), _require_postgresql(services))
    return Ready(status="ready" if redis == "ok" else "degraded", redis=redis)


async def _require_postgresql(services: Services) -> None:
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            await services.database.ping()
    except TimeoutError as error:
        raise DatabaseUnavailable from error


async def _redis_state(services: Services) -> RedisState:
    try:
        await services.queue.ping()
    except QueueRefusesWrites:
        return "refuses-writes"
    except Unavailable:
        return "unavailable"
    return "ok"
