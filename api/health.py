"""Liveness and readiness probes, for process supervisors, monitoring and load balancers."""

import asyncio
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from api.dependencies import ServicesDep
from api.openapi import errors
from domain.access.model import Principal, Role
from domain.errors import DatabaseUnavailable, Unavailable
from domain.jobs.stats import MAX_COUNTED
from domain.jobs.transport.job_queue import QueueRefusesWrites
from domain.services import Services

_TIMEOUT_SECONDS: Final = 3.0

WorkersState = Literal["ok", "none-alive"]
RedisState = Literal["ok", "unavailable", "refuses-writes"]

router = APIRouter(tags=["health"])


class LivenessOut(BaseModel):
    """The process responds."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"status": "alive"}]})

    status: Literal["alive"] = "alive"


class StatsOut(BaseModel):
    """Statistics of the whole installation: the present queue, and counters since its creation."""

    queue_depth: Annotated[int, Field(ge=0, description=f"Number of due queued jobs, counted up to {MAX_COUNTED}.")]
    oldest_due_seconds: Annotated[
        float | None, Field(ge=0, description="Seconds since the oldest of them became due; null if there is none.")
    ]
    rescued: Annotated[int, Field(ge=0, description="Jobs taken from workers that died or lost their lease.")]
    retried: Annotated[int, Field(ge=0, description="Failed attempts that were followed by another attempt.")]
    lost_messages: Annotated[int, Field(ge=0, description="Messages that Redis lost and that were sent again.")]


_EXAMPLE: Final[JsonDict] = {
    "status": "ready",
    "postgresql": "ok",
    "redis": "ok",
    "workers": "ok",
    "backends": {"local": "ok"},
    "stats": {"queue_depth": 3, "oldest_due_seconds": 0.4, "rescued": 1, "retried": 7, "lost_messages": 0},
}


class ReadinessOut(BaseModel):
    """State of the servers. `degraded`: Redis takes no writes, or no worker serves a backend: some jobs start later."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    status: Literal["ready", "degraded"]
    postgresql: Literal["ok"] = "ok"
    redis: RedisState
    workers: Annotated[
        WorkersState | None,
        Field(description="`none-alive`: jobs start when a worker is back. null if not known in time."),
    ]
    backends: Annotated[
        dict[str, str] | None,
        Field(description="By name: `ok`, or why no worker serves the backend. For system keys only."),
    ]
    stats: Annotated[
        StatsOut | None,
        Field(
            description="For system keys only. At most one second old; null if not available in time. Counters lag by "
            "some seconds."
        ),
    ]


@router.get("/healthz", summary="Check liveness", responses=errors())
async def check_alive() -> LivenessOut:
    """Respond, without checking anything else."""
    return LivenessOut()


@router.get("/readyz", summary="Check readiness", responses=errors(DatabaseUnavailable))
async def check_ready(request: Request, services: ServicesDep) -> ReadinessOut:
    """Ping PostgreSQL and Redis. Without PostgreSQL the response is 503; without Redis it is 200 and `degraded`.

    Needs no key; `backends` and `stats` are for system keys.
    """
    redis, _, workers, stats = await asyncio.gather(
        _redis_state(services), _require_postgresql(services), _workers_state(services), services.stats.latest()
    )
    backends = {status.name: status.problem or "ok" for status in services.directory.all()}
    ok = redis == "ok" and set(backends.values()) <= {"ok"}
    ready = ReadinessOut(status="ready" if ok else "degraded", redis=redis, workers=workers, backends=None, stats=None)
    principal: Principal | None = request.state.principal
    if principal is not None and principal.role is Role.SYSTEM:
        ready.backends = backends
        ready.stats = None if stats is None else StatsOut.model_validate({**vars(stats), **stats.counters})
    return ready


async def _require_postgresql(services: Services) -> None:
    try:
        async with asyncio.timeout(_TIMEOUT_SECONDS):
            await services.database.ping()
    except TimeoutError as error:
        raise DatabaseUnavailable from error


async def _workers_state(services: Services) -> WorkersState | None:
    try:
        async with asyncio.timeout(_TIMEOUT_SECONDS):
            return "ok" if await services.workers.count_alive() else "none-alive"
    except (DatabaseUnavailable, TimeoutError):
        return None


async def _redis_state(services: Services) -> RedisState:
    try:
        await services.queue.ping([None, *(status.name for status in services.directory.all())])
    except QueueRefusesWrites:
        return "refuses-writes"
    except Unavailable:
        return "unavailable"
    return "ok"
