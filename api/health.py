"""Is the process alive, and can it do its work? For whoever starts, watches and balances it."""

import asyncio
from typing import Annotated, Final, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from api.dependencies import NoQuery, ServicesDep
from api.openapi import errors
from domain.errors import DatabaseUnavailable, Unavailable
from domain.jobs.stats import MAX_COUNTED, Stats
from domain.jobs.transport.job_queue import QueueRefusesWrites
from domain.services import Services

_TIMEOUT_SECONDS: Final = 3.0

RedisState = Literal["ok", "unavailable", "refuses-writes"]

router = APIRouter(tags=["health"], dependencies=[NoQuery])


class Alive(BaseModel):
    """The process answers."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"status": "alive"}]})

    status: Literal["alive"] = "alive"


class StatsOut(BaseModel):
    """How the whole installation fares: what waits now, and what had to be mended since it began."""

    queue_depth: Annotated[
        int, Field(ge=0, description=f"Queued jobs that are due; {MAX_COUNTED} means at least that.")
    ]
    oldest_due_seconds: Annotated[
        float | None, Field(ge=0, description="How long the oldest of them has been due; null when none is.")
    ]
    rescued: Annotated[int, Field(ge=0, description="Jobs whose worker died or lost touch.")]
    retried: Annotated[int, Field(ge=0, description="Attempts that failed and were followed by another one.")]
    lost_messages: Annotated[int, Field(ge=0, description="Messages that Redis had lost, and that were sent again.")]


_EXAMPLE: Final[JsonDict] = {
    "status": "ready",
    "postgresql": "ok",
    "redis": "ok",
    "signals": {"queue_depth": 3, "oldest_due_seconds": 0.4, "rescued": 1, "retried": 7, "lost_messages": 0},
}


class Ready(BaseModel):
    """What the process stands on. Without a Redis to write to it is degraded: it accepts jobs, and they start later."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    status: Literal["ready", "degraded"]
    postgresql: Literal["ok"] = "ok"
    redis: RedisState
    stats: Annotated[
        StatsOut | None,
        Field(description="At most a second old; null when they cannot be had quickly. Counters lag by some seconds."),
    ]


@router.get("/healthz", operation_id="check_alive", summary="Is the process alive?", responses=errors())
async def check_alive() -> Alive:
    """Answer; nothing else is looked at."""
    return Alive()


@router.get(
    "/readyz",
    operation_id="check_ready",
    summary="Can the process do its work?",
    responses=errors(DatabaseUnavailable),
)
async def check_ready(services: ServicesDep) -> Ready:
    """Ask PostgreSQL and Redis for a sign of life."""
    redis, _, signals = await asyncio.gather(
        _redis_state(services), _require_postgresql(services), services.stats.latest()
    )
    status: Literal["ready", "degraded"] = "ready" if redis == "ok" else "degraded"
    return Ready(status=status, redis=redis, stats=None if signals is None else _render(signals))


def _render(signals: Stats) -> StatsOut:
    return StatsOut.model_validate({**vars(signals), **signals.counters})


async def _require_postgresql(services: Services) -> None:
    try:
        async with asyncio.timeout(_TIMEOUT_SECONDS):
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
