"""The command `cistern audit`."""

import json

import httpx
import pytest

from api.v1.audit import _EXAMPLE
from tests.unit.cli_terminal import Terminal


@pytest.fixture
def requests() -> list[str]:
    """The paths that were requested."""
    return []


@pytest.fixture
def cistern(requests: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Terminal:
    def answer(request: httpx.Request) -> httpx.Response:
        requests.append(request.url.raw_path.decode())
        return httpx.Response(200, json={"items": [_EXAMPLE], "next_cursor": None})

    terminal = Terminal(monkeypatch, capsys)
    terminal.handle_requests(answer)
    return terminal


def test_entries_are_listed_with_their_filters(cistern: Terminal, requests: list[str]) -> None:
    code, out, _ = cistern("audit", "--name", "backup", "--action", "volume.expand", "--limit", "3")

    assert code == 0
    assert out.splitlines()[1].split()[2:4] == ["backup", "volume.expand"]
    assert requests == ["/api/v1/audit?name=backup&action=volume.expand&limit=3"]


def test_entries_are_printed_as_json(cistern: Terminal) -> None:
    assert json.loads(cistern("audit", "--json").out) == _EXAMPLE
