"""Serves the metrics of a process on a port of its own, with the server of the Prometheus library.

It runs in a thread, so that a scrape is answered while the event loop is busy, and needs no key, because its port is
not the public one.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import structlog
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.registry import Collector

from domain.errors import ConfigurationError
from domain.metrics import recording
from domain.prometheus.installation import InstallationCollector, reader
from domain.prometheus.process import PrometheusRecorder
from domain.services import Services

#: Maximum time in which a client has to send its request, in seconds.
_TIMEOUT_SECONDS: Final = 10.0

log = structlog.get_logger(__name__)


@asynccontextmanager
async def serving(address: tuple[str, int], services: Services | None) -> AsyncIterator[PrometheusRecorder]:
    """Record and serve the metrics of this process while the block runs; with ``services`` also the installation's.

    Raises:
        ConfigurationError: the address cannot be used.
    """
    registry = CollectorRegistry()
    recorder = PrometheusRecorder(registry)
    if services is not None:  # only API processes: one kind of process is enough
        registry.register(installation_of(services))
    host, port = address
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise ConfigurationError(f"CISTERN_METRICS: cannot listen on port {port} of {host}: {error.strerror}") from None
    _harden(server)
    log.info("metrics.served", host=host, port=server.server_port)
    try:
        with recording(recorder):
            yield recorder
    finally:
        await asyncio.to_thread(server.shutdown)
        await asyncio.to_thread(thread.join)
        server.server_close()


def _harden(server: Any) -> None:
    """Log errors, which the server would print, and give up clients that send no request."""
    server.handle_error = _log_error
    server.RequestHandlerClass = type("Handler", (server.RequestHandlerClass,), {"timeout": _TIMEOUT_SECONDS})


def _log_error(*_: object) -> None:
    """Log the error that this thread has just caught."""
    log.debug("metrics.connection_failed", error=repr(sys.exception()))


def installation_of(services: Services) -> Collector:
    """Return the collector of the installation; it reads in the running event loop."""
    return InstallationCollector(reader(services), services.directory.all, asyncio.get_running_loop())
