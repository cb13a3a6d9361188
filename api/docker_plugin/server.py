"""The server of the plugin: HTTP on a unix socket, a thread for each request."""

import json
import os
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer
from typing import Any, Final

import structlog

from api.cli.client import ApiCallFailed, JsonObject
from api.docker_plugin.driver import VolumeDriver
from api.docker_plugin.errors import PluginError, UnknownVolume, explanation
from domain.errors import CisternError

CONTENT_TYPE: Final = "application/vnd.docker.plugins.v1.2+json"
_MAX_BODY_BYTES: Final = 1024 * 1024
_MOUNT: Final = "/VolumeDriver.Mount"

log = structlog.stdlib.get_logger()

Call = Callable[[VolumeDriver, JsonObject], JsonObject]


def _create(driver: VolumeDriver, request: JsonObject) -> JsonObject:
    options = request.get("Opts") or {}
    if not isinstance(options, dict) or not all(isinstance(value, str) for value in options.values()):
        raise PluginError("malformed request: Opts must be an object of texts")
    driver.create(_text(request, "Name"), options)
    return {}


def _remove(driver: VolumeDriver, request: JsonObject) -> JsonObject:
    driver.remove(_text(request, "Name"))
    return {}


def _mount(driver: VolumeDriver, request: JsonObject) -> JsonObject:
    return {"Mountpoint": driver.mount(_text(request, "Name"), _text(request, "ID"))}


def _unmount(driver: VolumeDriver, request: JsonObject) -> JsonObject:
    driver.unmount(_text(request, "Name"), _text(request, "ID"))
    return {}


CALLS: Final[dict[str, Call]] = {
    "/Plugin.Activate": lambda _driver, _request: {"Implements": ["VolumeDriver"]},
    "/VolumeDriver.Capabilities": lambda _driver, _request: {"Capabilities": {"Scope": "global"}},
    "/VolumeDriver.Create": _create,
    "/VolumeDriver.Remove": _remove,
    _MOUNT: _mount,
    "/VolumeDriver.Unmount": _unmount,
    "/VolumeDriver.Path": lambda driver, request: {"Mountpoint": driver.path(_text(request, "Name"))},
    "/VolumeDriver.Get": lambda driver, request: {"Volume": driver.get(_text(request, "Name"))},
    "/VolumeDriver.List": lambda driver, _request: {"Volumes": driver.list()},
}


class PluginServer(ThreadingMixIn, UnixStreamServer):
    """Listens at a path for its owner only. Closing it waits for open requests."""

    daemon_threads = False
    request_queue_size = 128

    def __init__(self, path: Path, driver: VolumeDriver, node: str) -> None:
        """Listen at ``path``, at which there must be nothing."""
        self.driver = driver
        self.node = node
        mask = os.umask(0o177)
        try:
            super().__init__(str(path), _Handler)
        finally:
            os.umask(mask)

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore a connection that has broken; what a call raises is answered."""


class _Handler(BaseHTTPRequestHandler):
    """Answers one request and closes the connection."""

    server: PluginServer
    timeout = 10

    def do_POST(self) -> None:
        """Answer a call. Podman takes only a status other than 200 for an error."""
        request: JsonObject = {}
        try:
            request = self._request()  # before any answer: what is not read resets the connection
            call = CALLS.get(self.path)
            if call is None:
                return self._send(404, {"Err": f"Cistern's volume plugin has no call {self.path}"})
            answer = call(self.server.driver, request)
        except CisternError as error:
            sentence = _sentence(error, self.server.node)
            if not isinstance(error, UnknownVolume):  # engines ask before they create
                log.warning("plugin.call_failed", call=self.path, volume=str(request.get("Name")), error=sentence)
            return self._send(500, {"Err": sentence})
        except Exception:
            log.exception("plugin.call_crashed", call=self.path, volume=str(request.get("Name")))
            return self._send(500, {"Err": "unexpected error in Cistern's volume plugin: its log says more"})
        try:
            self._send(200, answer)
        except OSError:
            if self.path == _MOUNT:
                self._undo_mount(request)
            raise
        return None

    def _undo_mount(self, request: JsonObject) -> None:
        log.warning("plugin.mount_unanswered", volume=request["Name"], engine_id=request["ID"])
        try:
            self.server.driver.unanswered_mount(request["Name"], request["ID"])
        except CisternError as error:
            sentence = _sentence(error, self.server.node)
            log.warning("plugin.call_failed", call=self.path, volume=request["Name"], error=sentence)

    def _request(self) -> JsonObject:
        length = self.headers.get("Content-Length") or "0"
        if not length.isdecimal() or int(length) > _MAX_BODY_BYTES or "Transfer-Encoding" in self.headers:
            raise PluginError("malformed request: it needs a Content-Length of at most 1 MiB")
        try:
            body = json.loads(self.rfile.read(int(length)) or b"{}")
        except ValueError as error:
            raise PluginError(f"malformed request: {error}") from error
        if not isinstance(body, dict | None):
            raise PluginError("malformed request: it must be a JSON object")
        return body or {}

    def _send(self, status: int, body: JsonObject) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Log no requests: calls that fail are logged."""


def _text(request: JsonObject, member: str) -> str:
    value = request.get(member)
    if not isinstance(value, str) or not value:
        raise PluginError(f"malformed request: {member} is missing")
    return value


def _sentence(error: CisternError, node: str) -> str:
    message = explanation(error, node) if isinstance(error, ApiCallFailed) else error.message
    return " ".join(message.split())
