"""The process of the plugin: from its start to a signal that ends it."""

import signal
from pathlib import Path
from threading import Event, Thread
from typing import Final

import structlog

from api.cli.client import ApiClient
from api.docker_plugin.attachments import Attachments
from api.docker_plugin.calls import Calls
from api.docker_plugin.driver import VolumeDriver
from api.docker_plugin.mounts import Mounts
from api.docker_plugin.server import PluginServer
from api.docker_plugin.socket_path import owned_socket_path

_STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)

log = structlog.stdlib.get_logger()


def run(api: ApiClient, socket: Path, node: str, default_size: int | None) -> None:
    """Serve the plugin at a socket until SIGTERM or SIGINT; open requests are answered, with an error if they wait.

    Raises:
        ConfigurationError: the socket cannot be used.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)  # before threads start, which inherit it
    stopping = Event()
    with owned_socket_path(socket):
        calls = Calls(api, stopping)
        mounts = Mounts(socket.with_name(f"{socket.name}.mounts"))
        driver = VolumeDriver(calls, Attachments(calls, mounts, node), default_size)
        with PluginServer(socket, driver, node) as server:
            thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1})
            thread.start()
            log.info("plugin.ready", socket=str(socket), node=node)
            signal.sigwait(_STOP_SIGNALS)
            stopping.set()
            server.shutdown()
            thread.join()
    log.info("plugin.stopped")
