"""The HTTP client of the command line, on Python's own: importing another takes as long as a whole command may."""

import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

from domain.errors import CisternError

TIMEOUT_SECONDS: Final = 15.0
NOT_MODIFIED: Final = 304
_PORTS: Final = {"http": 80, "https": 443}


class InvalidUrl(CisternError):
    """The URL of the API is malformed."""

    code = "invalid-url"


class NoResponse(CisternError):
    """No server responds, or what responds is no HTTP server."""

    code = "no-response"


@dataclass(frozen=True)
class Response:
    """The response to a request. The names of its headers are in lower case."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes = b""

    @property
    def is_success(self) -> bool:
        """Whether the request was carried out or accepted."""
        return 200 <= self.status < 300  # noqa: PLR2004 (defined by HTTP)


class HttpClient:
    """Sends requests to one server, each on a connection of its own; threads may share it.

    It follows no redirects and uses no proxy.
    """

    def __init__(
        self,
        base_url: str,
        headers: Mapping[str, str],
        *,
        ca_file: str | None = None,
        timeout: float = TIMEOUT_SECONDS,
    ) -> None:
        """Prepare the client. ``ca_file`` has the certificates that are trusted for https; None means the system's.

        Raises:
            InvalidUrl: it is no URL of an HTTP server.
            OSError: ``ca_file`` cannot be read.
        """
        try:
            parts = urlsplit(base_url)
            self._host, self._port = parts.hostname or "", parts.port or _PORTS.get(parts.scheme, 0)
        except ValueError as error:
            raise InvalidUrl(f"invalid URL {base_url!r}: {error}") from error
        if parts.scheme not in _PORTS or not self._host:
            raise InvalidUrl(f"invalid URL {base_url!r}: it must be http://... or https://...")
        # Loading certificates takes 30 ms.
        self._tls = ssl.create_default_context(cafile=ca_file) if parts.scheme == "https" else None
        self.base_url = base_url
        self._root = parts.path.rstrip("/")
        self._headers = headers
        self._timeout = timeout

    def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        """Send a request with ``body`` as JSON; a list among the ``params`` repeats its name.

        Raises:
            NoResponse: the server does not respond within the timeout.
        """
        target = self._root + path + (f"?{urlencode(params, doseq=True)}" if params else "")
        sent = {**self._headers, **(headers or {})}
        content = None if body is None else json.dumps(body).encode()
        if content is not None:
            sent["Content-Type"] = "application/json"
        connection = self._connection()
        try:
            connection.request(method, target, content, sent)
            response = connection.getresponse()
            named = {name.lower(): value for name, value in response.getheaders()}
            return Response(response.status, named, response.read())
        except (OSError, HTTPException, ValueError) as error:  # ValueError: a header or a host that cannot be sent
            raise NoResponse(str(error) or type(error).__name__) from error
        finally:
            connection.close()

    def _connection(self) -> HTTPConnection:
        if self._tls is None:
            return HTTPConnection(self._host, self._port, timeout=self._timeout)
        return HTTPSConnection(self._host, self._port, timeout=self._timeout, context=self._tls)
