"""One worker process: arq receives the messages, the runner handles them, three tasks run in the background.

``python -m worker`` runs it under a supervisor. The stock command ``arq worker.main.WorkerSettings`` works too, but
exits when Redis is unavailable, so that it needs an external service manager.
"""

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from typing import Any, Final

import structlog
import uvloop
from arq.worker import func
from uuid_utils.compat import uuid7

from domain.db.database import CLOSE_TIMEOUT
from domain.errors import CisternError, DatabaseUnavailable
from domain.jobs.engine import JobEngine
from domain.jobs.kinds import JobHandlers, JobKind
from domain.jobs.model import Worker
from domain.jobs.transport.job_queue import FUNCTION_NAME, JobQueue, QueueKeys, deserialize, message_from, serialize
from domain.logs import configure_logging
from domain.prometheus import serving_if_set
from domain.services import Services, open_services, read_queue_keys
from domain.settings import Settings, load_log_settings, load_settings, require_servers
from domain.storage.context import StallLimits
from domain.tasks import in_background, tune_gc
from worker.consumer import Supervisor
from worker.heartbeat import Heartbeat, LivenessFile, StallDetector
from worker.lanes import FairShare, LaneHandler
from worker.maintenance import Maintenance
from worker.performer import AttemptPerformer
from worker.runner import Runner

_POLL_SECONDS: Final = 0.1
_HEALTH_SECONDS: Final = 10
#: arq's limit on the deliveries of one message; in effect none, because the row counts the attempts.
_MAX_TRIES: Final = 1_000_000

log = structlog.get_logger(__name__)


async def run_job(ctx: dict[str, Any], job_id: str, epoch: int) -> None:
    """Handle a message that arq itself runs: all messages under stock arq, or one that another producer has sent."""
    await ctx["runner"].handle(message_from(job_id, epoch))


async def start_up(ctx: dict[str, Any]) -> None:
    """Open the worker when stock arq starts. Its command has changed the logging setup, which is restored first."""
    configure_logging(ctx["settings"])
    ctx["closing"] = AsyncExitStack()
    runner = ctx["runner"] = await ctx["closing"].enter_async_context(open_worker(ctx["settings"]))
    # Stock arq fetches from one queue only: that of the jobs that any worker can do.
    await ctx["closing"].enter_async_context(supervisor(ctx["settings"], runner).consuming())


async def shut_down(ctx: dict[str, Any]) -> None:
    """Close the worker when stock arq stops."""
    await ctx["closing"].aclose()


def worker_handlers(services: Services, count_workers: Callable[[], int]) -> JobHandlers:
    """Return the handlers of a worker: those of the domain, and that of lanes.

    ``count_workers`` returns the number of live workers.
    """
    return {**services.handlers, JobKind.BULK_LANE: LaneHandler(services.bulk, FairShare(count_workers))}


@asynccontextmanager
async def open_worker(settings: Settings) -> AsyncIterator[Runner]:
    """Run heartbeat, maintenance and stall detection while the block runs; yield the runner."""
    async with open_services(settings, adopt=True) as services:
        worker = Worker(id=uuid7(), host=socket.gethostname(), pid=os.getpid(), slots=settings.max_jobs)
        handlers = worker_handlers(services, lambda: engine.workers)
        engine = services.engine(worker, handlers)
        await services.registry.announce(worker.id, worker.host)
        announcing = services.registry.run_forever(worker.id, worker.host)
        performer = AttemptPerformer(handlers, services.retry_policy)
        runner = Runner(engine, services.queue, performer, slots=settings.max_jobs)
        heartbeat, detector = watchers(settings, engine, runner)
        maintenance = Maintenance(
            services.maintenance_tasks(engine).due, heartbeat, services.retention.prune, interval=settings.sweep_seconds
        )
        loops = (heartbeat, maintenance, detector, services.fence_retention, services.volume_history)
        async with (
            serving_if_set(settings.metrics) as recorder,
            in_background(announcing, *(loop.run_forever() for loop in loops)),
        ):
            recorder.measure_lanes(lambda: sum(one.job.kind == JobKind.BULK_LANE for one in [*runner.running.values()]))
            yield runner
            await runner.close()
        with suppress(
            DatabaseUnavailable, TimeoutError
        ):  # other workers delete the row after an hour without heartbeats
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await engine.deregister()
                await services.registry.withdraw(worker.id)


def watchers(settings: Settings, engine: JobEngine, runner: Runner) -> tuple[Heartbeat, StallDetector]:
    """Return what renews the leases of a worker's jobs, and what finds those that hang."""
    stall = StallLimits(settings.stall_seconds, settings.blocking_call_seconds)
    heartbeat = Heartbeat(
        engine,
        runner.running,
        lease=settings.lease_seconds,
        stall=stall,
        min_timeout=settings.heartbeat_timeout_seconds,
        liveness_file=LivenessFile.open(settings.heartbeat_file),
    )
    return heartbeat, StallDetector(runner.running, stall=stall, slots=settings.max_jobs)


def arq_settings(settings: Settings, keys: QueueKeys) -> dict[str, Any]:
    """Return arq's settings, for both ways to start a worker.

    1. No job timeout: arq does not end long jobs, and reserves a message for ten seconds only (three, under the
       supervisor), so that the message of a worker that died before its claim is soon received by another.
    2. No results are kept and messages are JSON: Redis holds nothing of value, and reading a message runs no code.
    """
    return {
        "functions": [func(run_job, name=FUNCTION_NAME, max_tries=_MAX_TRIES)],
        "queue_name": keys.queue(None),
        "redis_pool": JobQueue.open(settings.redis_url, keys).redis,
        "max_jobs": settings.max_jobs,
        "job_timeout": None,
        "keep_result": 0,
        "log_results": False,
        "poll_delay": _POLL_SECONDS,
        "job_completion_wait": settings.drain_seconds,
        "health_check_interval": _HEALTH_SECONDS,
        "health_check_key": f"{keys.prefix}:health:{socket.gethostname()}:{os.getpid()}",
        "job_serializer": serialize,
        "job_deserializer": deserialize,
    }


def stock_settings() -> dict[str, Any]:
    """Return the settings for ``arq worker.main.WorkerSettings``."""
    settings = require_servers(load_settings())
    configure_logging(settings)
    keys = asyncio.run(read_queue_keys(settings))
    return arq_settings(settings, keys) | {
        "on_startup": start_up,
        "on_shutdown": shut_down,
        "ctx": {"settings": settings},
    }


def supervisor(settings: Settings, runner: Runner) -> Supervisor:
    """Return what runs a worker until a signal ends it."""
    return Supervisor(runner, arq_settings(settings, runner.queue.keys), drain=settings.drain_seconds)


async def work(settings: Settings) -> None:
    """Run one worker until it is stopped by a signal."""
    async with open_worker(settings) as runner:
        tune_gc()
        await supervisor(settings, runner).run()


def main() -> None:
    """Entry point of ``python -m worker``. Start-up errors are logged in one line; exit status 1."""
    configure_logging(load_log_settings())
    with (
        start_up_error_in_one_line(),
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        runner.run(work(require_servers(load_settings())))


@contextmanager
def start_up_error_in_one_line() -> Iterator[None]:
    """Log an error of Cistern in one line, and end the process with the exit status 1."""
    try:
        yield
    except CisternError as error:
        log.error("worker.failed", reason=str(error))  # noqa: TRY400 (without a traceback)
        sys.exit(1)


def __getattr__(name: str) -> Any:
    """Read the environment only when stock arq requests its settings, not at import."""
    if name == "WorkerSettings":
        configure_logging(load_log_settings())
        with start_up_error_in_one_line():
            return stock_settings()
    raise AttributeError(name)
