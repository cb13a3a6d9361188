"""The command line in the test's own process: what it is told to ask, and what it says."""

import asyncio
import sys
from collections.abc import Callable
from typing import NamedTuple

import httpx
import pytest

from api.cli import client as calls
from api.cli.app import main
from api.main import create_app
from tests.support.http import client_of
from tests.unit.fakes import FakeServices

Answering = Callable[[httpx.Request], httpx.Response]


class Said(NamedTuple):
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str


class Terminal:
    """Runs commands; what they ask over HTTP is answered by the test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys
        self.urls: list[str] = []

    def answer(self, answering: Answering) -> None:
        def connect(url: str) -> httpx.Client:
            self.urls.append(url)
            return httpx.Client(base_url=url, transport=httpx.MockTransport(answering))

        self._monkeypatch.setattr(calls, "connect", connect)

    def __call__(self, *arguments: str) -> Said:
        self._monkeypatch.setattr(sys, "argv", ["cistern", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return Said(int(ended.value.code or 0), *self._capsys.readouterr())


def the_api(fake: FakeServices) -> Answering:
    """Have the real routes answer, over services in memory."""

    async def ask(request: httpx.Request) -> httpx.Response:
        async with client_of(create_app(fake.opening())) as client:
            path = request.url.raw_path.decode()
            return await client.request(request.method, path, content=request.content, headers=request.headers)

    def answering(request: httpx.Request) -> httpx.Response:
        answer = asyncio.run(ask(request))
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)

    return answering
