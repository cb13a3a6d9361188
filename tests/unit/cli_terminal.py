"""Run the command line in the test's own process, with HTTP responses from the test."""

import asyncio
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import httpx
import pytest

from api.cli import client as client_module
from api.cli.app import main
from api.cli.http import HttpClient, NoResponse, Response
from api.main import create_app
from tests.support.http import client_of
from tests.unit.fakes import FakeServices

RequestHandler = Callable[[httpx.Request], httpx.Response]


class Result(NamedTuple):
    """The exit status of a command and its output."""

    code: int
    out: str
    err: str


class FakeHttp(HttpClient):
    """An HTTP client whose requests a function answers."""

    def __init__(self, handler: RequestHandler, url: str = "http://cistern") -> None:
        super().__init__(url, {})
        self._handler = handler

    def request(self, method: str, path: str, *, body: Any = None, **options: Any) -> Response:
        request = httpx.Request(method, self.base_url + path, json=body, **options)
        try:
            response = self._handler(request)
        except httpx.TransportError as error:
            raise NoResponse(str(error) or type(error).__name__) from error
        return Response(response.status_code, dict(response.headers), response.content)


class Terminal:
    """Runs commands, and records the URLs that they connect to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys
        self.urls: list[str] = []

    def handle_requests(self, handler: RequestHandler) -> None:
        """Let ``handler`` answer the HTTP requests of the commands."""

        def connect(url: str) -> HttpClient:
            self.urls.append(url)
            return FakeHttp(handler, url)

        self._monkeypatch.setattr(client_module, "connect", connect)

    def __call__(self, *arguments: str) -> Result:
        self._monkeypatch.setattr(sys, "argv", ["cistern", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return Result(int(ended.value.code or 0), *self._capsys.readouterr())


def api_over(fake: FakeServices) -> RequestHandler:
    """Return a handler that runs the real routes over fake services."""

    async def send(request: httpx.Request) -> httpx.Response:
        async with client_of(create_app(fake.factory())) as client:
            path = request.url.raw_path.decode()
            return await client.request(request.method, path, content=request.content, headers=request.headers)

    def handle(request: httpx.Request) -> httpx.Response:
        response = asyncio.run(send(request))
        return httpx.Response(response.status_code, headers=response.headers, content=response.content)

    return handle
