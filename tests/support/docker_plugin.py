"""The volume plugin in the test's own process, called as an engine calls it."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from threading import Event, Thread
from typing import Any

from api.cli.client import open_api
from api.docker_plugin.attachments import Attachments
from api.docker_plugin.calls import Calls
from api.docker_plugin.driver import VolumeDriver
from api.docker_plugin.mounts import Mounts
from api.docker_plugin.server import PluginServer

NODE = "here"


class UnixConnection(HTTPConnection):
    """HTTP on a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("plugin", timeout=20)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Engine:
    """Calls a plugin at a socket."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def send(self, call: str, body: Any = None) -> UnixConnection:
        """Send a request, and do not wait for the answer."""
        connection = UnixConnection(self.path)
        connection.request("POST", f"/{call}", None if body is None else json.dumps(body))
        return connection

    def call(self, call: str, body: Any = None) -> dict[str, Any]:
        """Return the answer, which must not be an error."""
        status, answer = self.answer(self.send(call, body))
        assert status == 200, answer
        return answer

    def error(self, call: str, body: Any = None) -> str:
        """Return the text of the error that a call ends with."""
        status, answer = self.answer(self.send(call, body))
        assert status == 500, answer
        assert answer.keys() == {"Err"}
        assert "\n" not in answer["Err"]
        return str(answer["Err"])

    def answer(self, connection: UnixConnection) -> tuple[int, dict[str, Any]]:
        """Return the status and the body of an answer."""
        response = connection.getresponse()
        content = json.loads(response.read())
        connection.close()
        return response.status, content

    def create(self, name: str, **options: str) -> dict[str, Any]:
        return self.call("VolumeDriver.Create", {"Name": name, "Opts": options})

    def mount(self, name: str, engine_id: str) -> str:
        return str(self.call("VolumeDriver.Mount", {"Name": name, "ID": engine_id})["Mountpoint"])

    def unmount(self, name: str, engine_id: str) -> None:
        self.call("VolumeDriver.Unmount", {"Name": name, "ID": engine_id})


@contextmanager
def plugin(url: str, directory: Path, default_size: int | None = None) -> Iterator[Engine]:
    """Serve the plugin, and yield an engine that calls it."""
    path, stopping = directory / "cistern.sock", Event()
    calls = Calls(open_api(url), stopping)
    attachments = Attachments(calls, Mounts(directory / "mounts.json"), NODE)
    with PluginServer(path, VolumeDriver(calls, attachments, default_size), NODE) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield Engine(path)
        finally:
            stopping.set()
            server.shutdown()
            thread.join()
            path.unlink()
