"""The command `cistern audit`."""

import json

import httpx

from api.v1.audit import _EXAMPLE
from tests.unit.cli_terminal import Terminal

requests: list[str] = []


def answer(request: httpx.Request) -> httpx.Response:
    requests.append(request.url.raw_path.decode())
    return httpx.Response(200, json={"items": [_EXAMPLE], "next_cursor": None})


def test_entries_are_listed_with_their_filters(cistern: Terminal) -> None:
    requests.clear()
    status, output = cistern(answer, "audit", "--name", "backup", "--action", "volume.expand", "--limit", "3")

    assert status == 0
    assert "backup" in output
    assert "volume.expand" in output
    assert requests == ["/api/v1/audit?name=backup&action=volume.expand&limit=3"]


def test_entries_are_printed_as_json(cistern: Terminal) -> None:
    assert json.loads(cistern(answer, "audit", "--json")[1]) == _EXAMPLE
