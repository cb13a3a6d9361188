"""The process of ``cistern csi``: a server of gRPC on a unix socket."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import grpc
import structlog

from api.cli.client import ApiClient
from api.csi import controller, identity, node
from api.csi.api import PATIENCE_SECONDS
from api.csi.service import handler_of, opener
from domain.errors import ConfigurationError

#: Calls at the same time; most of them wait for a job. Further calls are told to come again.
_MAX_CALLS: Final = 64
#: How long the calls that have begun may take after a stop signal.
_GRACE_SECONDS: Final = 5.0
_SCHEME: Final = "unix://"
_SERVICES: Final = {"Identity": identity.CALLS, "Controller": controller.CALLS, "Node": node.CALLS}

log: Final = structlog.stdlib.get_logger()


def run(client: ApiClient, endpoint: str, node_name: str) -> None:
    """Serve all three services until SIGTERM or SIGINT.

    Raises:
        ConfigurationError: the endpoint is no unix socket, or cannot be one.
    """
    asyncio.run(_run(client, endpoint, node_name))


async def _run(client: ApiClient, endpoint: str, node_name: str) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    async with serving(client, endpoint, node_name):
        log.info("csi.started", endpoint=endpoint, node=node_name)
        await stopped.wait()
    log.info("csi.stopped")


@asynccontextmanager
async def serving(
    client: ApiClient, endpoint: str, node_name: str, *, patience: float = PATIENCE_SECONDS
) -> AsyncIterator[None]:
    """Serve while the block runs. Only the user and the group may use the socket: they act with the key.

    Raises:
        ConfigurationError: as `run`.
    """
    path = _socket_path(endpoint)
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(_MAX_CALLS, thread_name_prefix="csi"))
    server = grpc.aio.server(maximum_concurrent_rpcs=_MAX_CALLS)
    begin = opener(client, node_name, patience)
    server.add_generic_rpc_handlers(tuple(handler_of(name, calls, begin) for name, calls in _SERVICES.items()))
    umask = os.umask(0o117)
    try:
        server.add_insecure_port(f"{_SCHEME}{path}")
    except RuntimeError as error:
        raise ConfigurationError(f"--endpoint {endpoint}: no socket can be made there") from error
    finally:
        os.umask(umask)
    await server.start()
    try:
        yield
    finally:
        await server.stop(_GRACE_SECONDS)  # and remove the socket


def _socket_path(endpoint: str) -> Path:
    path = Path(endpoint.removeprefix(_SCHEME))
    if not endpoint.startswith(_SCHEME) or not path.is_absolute():
        raise ConfigurationError(f"--endpoint {endpoint}: it must be unix:///PATH: every user could call another one")
    return path
