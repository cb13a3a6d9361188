"""One worker process: arq delivers the messages, the runner answers them, three tasks keep the house.

``python -m worker`` runs it under supervision. The stock ``arq worker.main.WorkerSettings`` works too, and leaves it
to whoever started it to start it again when Redis was away.
"""

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from typing import Any, Final

import structlog
import uvloop
from arq.worker import func
from uuid_utils.compat import uuid7

from domain.db.database import CLOSE_TIMEOUT
from domain.errors import CisternError, DatabaseUnavailable
from domain.jobs.model import Worker
from domain.jobs.transport.job_queue import QUEUE_NAME, JobQueue
from domain.jobs.transport.messages import FUNCTION_NAME, deserialize, dispatch_from, serialize
from domain.logs import configure_logging
from domain.services import Handler, Services, open_services
from domain.settings import Settings, load_log_settings, load_settings, require_servers
from domain.tasks import in_background, tune_gc
from worker.attempts import Attempts
from worker.fair_share import FairShare
from worker.heartbeat import Heartbeat
from worker.lanes import Lanes
from worker.liveness import LivenessFile
from worker.maintenance import Maintenance
from worker.runner import Runner
from worker.stalls import Stalls
from worker.supervisor import Supervisor

_POLL_SECONDS: Final = 0.1
_HEALTH_SECONDS: Final = 10
#: arq counts how often a message was delivered; what counts attempts is the row.
_MAX_DELIVERIES: Final = 1_000_000


log = structlog.get_logger(__name__)


async def run_job(ctx: dict[str, Any], job_id: str, epoch: int) -> None:
    """Answer one message."""
    await ctx["runner"].answer(dispatch_from(job_id, epoch))


async def start_up(ctx: dict[str, Any]) -> None:
    """Open the workshop, when the stock arq starts; its command has set up logging in its own way meanwhile."""
    configure_logging(ctx["settings"])
    ctx["closing"] = AsyncExitStack()
    ctx["runner"] = await ctx["closing"].enter_async_context(open_worker(ctx["settings"]))


async def shut_down(ctx: dict[str, Any]) -> None:
    """Close the workshop, when the stock arq stops."""
    await ctx["closing"].aclose()


def handlers(services: Services, workers: Callable[[], int]) -> dict[str, Handler]:
    """The domain's table, with what is the worker's own work in it; ``workers`` tells how many there are."""
    lane = replace(services.handlers["bulk.lane"], perform=Lanes(services.chunks, FairShare(workers)).work)
    return services.handlers | {"bulk.lane": lane}


@asynccontextmanager
async def open_worker(settings: Settings) -> AsyncIterator[Runner]:
    """Have a runner, a heartbeat and housekeeping at work as long as the block lasts."""
    async with open_services(settings) as services:
        engine = services.engine(Worker(id=uuid7(), host=socket.gethostname(), pid=os.getpid()))
        attempts = Attempts(handlers(services, lambda: engine.workers), services.retry_policy)
        runner = Runner(engine, services.queue, attempts, slots=settings.max_jobs)
        pulse = LivenessFile.open(settings.heartbeat_file)
        heartbeat = Heartbeat(
            engine,
            runner.running,
            lease=settings.lease_seconds,
            stall=settings.stall_seconds,
            min_timeout=settings.heartbeat_timeout_seconds,
            pulse=pulse,
        )
        maintenance = Maintenance(
            services.maintenance_tasks(engine).due, heartbeat, services.retention.prune, interval=settings.sweep_seconds
        )
        stalls = Stalls(runner.running, stall=settings.stall_seconds, slots=settings.max_jobs)
        async with in_background(heartbeat.run_forever(), maintenance.run_forever(), stalls.run_forever()):
            yield runner
            await runner.close()
        with suppress(DatabaseUnavailable, TimeoutError):  # then we are struck off after an hour of silence
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await engine.deregister()


def arq_settings(settings: Settings) -> dict[str, Any]:
    """What both ways to start a worker tell arq.

    Without a timeout of its own arq lets long jobs be, and its lock on a message that was delivered to a worker which
    then died lasts ten seconds (three, under supervision). It keeps no results and serializes JSON: Redis holds nothing
    that is worth anything.
    """
    return {
        "functions": [func(run_job, name=FUNCTION_NAME, max_tries=_MAX_DELIVERIES)],
        "queue_name": QUEUE_NAME,
        "redis_pool": JobQueue.open(settings.redis_url).redis,
        "max_jobs": settings.max_jobs,
        "job_timeout": None,
        "keep_result": 0,
        "log_results": False,
        "poll_delay": _POLL_SECONDS,
        "job_completion_wait": settings.drain_seconds,
        "health_check_interval": _HEALTH_SECONDS,
        "health_check_key": f"{QUEUE_NAME}:health:{socket.gethostname()}:{os.getpid()}",
        "job_serializer": serialize,
        "job_deserializer": deserialize,
    }


def stock_settings() -> dict[str, Any]:
    """What ``arq worker.main.WorkerSettings`` finds."""
    settings = require_servers(load_settings())
    configure_logging(settings)
    return arq_settings(settings) | {"on_startup": start_up, "on_shutdown": shut_down, "ctx": {"settings": settings}}


async def work(settings: Settings) -> None:
    """Run one worker until a signal ends it."""
    async with open_worker(settings) as runner:
        tune_gc()
        await Supervisor(runner, arq_settings(settings), drain=settings.drain_seconds).run()


def main() -> None:
    """Be ``python -m worker``; what keeps it from starting is one line and exit code 1."""
    configure_logging(load_log_settings())
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(work(require_servers(load_settings())))
    except CisternError as error:
        log.error("worker.failed", reason=error.message)  # noqa: TRY400 (one line)
        sys.exit(1)


def __getattr__(name: str) -> Any:
    """Read the environment only when the stock arq asks for its settings, not at import."""
    if name == "WorkerSettings":
        return stock_settings()
    raise AttributeError(name)
