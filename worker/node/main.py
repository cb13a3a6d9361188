"""One node agent: a worker that carries out the attachments of its host, and keeps the host's volumes."""

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Final

import structlog
import uvloop
from uuid_utils.compat import uuid7

from domain.attachment_handlers import attachment_handlers
from domain.db.database import CLOSE_TIMEOUT
from domain.errors import ConfigurationError, DatabaseUnavailable
from domain.jobs.engine import JobEngine
from domain.jobs.kinds import NODE_KINDS, JobHandlers
from domain.jobs.model import Worker
from domain.logs import configure_logging
from domain.prometheus import serving_if_set
from domain.services import Services, open_services
from domain.settings import Settings, load_log_settings, load_settings, require_servers
from domain.storage.model import LOOK_SECONDS
from domain.tasks import in_background, tune_gc
from domain.volumes.attachments.freezing import FreezeAnswers
from domain.volumes.attachments.model import queue_of
from domain.volumes.attachments.node_volumes import NodeVolumes
from worker.main import start_up_error_in_one_line, supervisor, watchers
from worker.node.agent import NodeAgent
from worker.node.freezing import NodeFreezes
from worker.node.host.host import Host, HostProtocol
from worker.node.keeper import VolumeKeeper
from worker.performer import AttemptPerformer
from worker.runner import Runner

_POLL_SECONDS: Final = 0.5

log = structlog.get_logger(__name__)


@asynccontextmanager
async def open_node(settings: Settings, host: HostProtocol) -> AsyncIterator[Runner]:
    """Run heartbeat, stall detection and the keeper while the block runs; yield the runner."""
    async with open_services(settings) as services:
        volumes = NodeVolumes(services.database, settings.node)
        await _wait_for_other_host(volumes, settings)
        with host.claimed(settings.node, str(await services.database.installation())):
            async with _opened(settings, services, host, volumes) as runner:
                yield runner


@asynccontextmanager
async def _opened(
    settings: Settings, services: Services, host: HostProtocol, volumes: NodeVolumes
) -> AsyncIterator[Runner]:
    await host.prepare()
    await host.thaw_all()  # what an agent that was killed has left
    await services.registry.look()
    agent = NodeAgent(host, services.backends)
    freezes = NodeFreezes(host, FreezeAnswers(services.database), settings.node)
    engine, runner = _open_runner(settings, services, agent)
    heartbeat, detector = watchers(settings, engine, runner)
    await heartbeat.beat()  # from now on the node is known
    loops = (
        *(heartbeat.run_forever(), detector.run_forever()),
        _keeper(settings, services, host, agent, volumes, freezes).run_forever(),
        _look_forever(services),
    )
    async with serving_if_set(settings.metrics), in_background(*loops):
        yield runner
        await runner.close()
    await freezes.close()
    with suppress(DatabaseUnavailable, TimeoutError):  # workers delete the row after an hour without heartbeats
        async with asyncio.timeout(CLOSE_TIMEOUT):
            await engine.deregister()


async def _wait_for_other_host(volumes: NodeVolumes, settings: Settings) -> None:
    """Wait until the agent of another host with this node's name, which may have been killed, counts as dead.

    Raises:
        ConfigurationError: it is alive. Both would mount the node's volumes.
    """
    host, until = socket.gethostname(), time.monotonic() + settings.lease_seconds + _POLL_SECONDS
    while (other := await volumes.other_host(host, lease=settings.lease_seconds)) is not None:
        if time.monotonic() > until:
            raise ConfigurationError(
                f"CISTERN_NODE: the agent of the host {other!r} has the name {settings.node!r}, too"
            )
        await asyncio.sleep(_POLL_SECONDS)


def _open_runner(settings: Settings, services: Services, agent: NodeAgent) -> tuple[JobEngine, Runner]:
    worker = Worker(id=uuid7(), host=socket.gethostname(), pid=os.getpid(), slots=settings.max_jobs, node=settings.node)
    made = attachment_handlers(services.database, services.backends, max_attempts=settings.max_attempts, node=agent)
    handlers: JobHandlers = {kind: made[kind] for kind in NODE_KINDS}
    engine = services.engine(worker, handlers, served=lambda: [queue_of(settings.node)])
    performer = AttemptPerformer(handlers, services.retry_policy)
    return engine, Runner(engine, services.queue, performer, slots=settings.max_jobs, shares_queue=False)


def _keeper(  # noqa: PLR0917 (each of another type)
    settings: Settings,
    services: Services,
    host: HostProtocol,
    agent: NodeAgent,
    volumes: NodeVolumes,
    freezes: NodeFreezes,
) -> VolumeKeeper:
    return VolumeKeeper(
        host,
        agent,
        volumes,
        partial(services.queue.woken, queue_of(settings.node)),
        freezes=freezes,
        trim_seconds=settings.trim_seconds,
    )


async def _look_forever(services: Services) -> None:
    """Find out again and again which backends this host reaches."""
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        with suppress(DatabaseUnavailable):
            await services.registry.look()


async def keep_node(settings: Settings) -> None:
    """Run one node agent until it is stopped by a signal. What is mounted stays mounted."""
    if os.geteuid() != 0:
        raise ConfigurationError("`cistern node` mounts volumes: run it as root")
    async with open_node(settings, Host(settings.node_dir, allowed=settings.node_paths)) as runner:
        tune_gc()
        log.info("node.ready", node=settings.node, directory=str(settings.node_dir))
        await supervisor(settings, runner).run()


def main() -> None:
    """Entry point of ``cistern node``. Start-up errors are logged in one line; exit status 1."""
    configure_logging(load_log_settings())
    with start_up_error_in_one_line(), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(keep_node(require_servers(load_settings())))
