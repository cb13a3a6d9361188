"""The commands `cistern projects`."""

import json

import httpx
import pytest

from api.cli.key_file import authorization
from api.schemas.projects import _EXAMPLE
from tests.unit.cli_terminal import Terminal


@pytest.fixture
def requests() -> list[httpx.Request]:
    """The requests that were sent."""
    return []


@pytest.fixture
def cistern(
    requests: list[httpx.Request], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Terminal:
    def answer(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        body = {"items": [_EXAMPLE], "next_cursor": None} if request.method == "GET" else _EXAMPLE
        return httpx.Response(200, json=body)

    terminal = Terminal(monkeypatch, capsys)
    terminal.handle_requests(answer)
    return terminal


def test_projects_are_listed_with_what_they_have_of_how_much(cistern: Terminal) -> None:
    code, out, _ = cistern("projects", "list")

    assert code == 0
    assert out.splitlines()[1].split()[:4] == ["search", "12", "of", "100"]
    assert json.loads(cistern("projects", "list", "--json").out) == _EXAMPLE


def test_project_is_created(cistern: Terminal, requests: list[httpx.Request]) -> None:
    code, _, _ = cistern("projects", "create", "search")

    assert code == 0
    assert requests[0].url.path == "/api/v1/projects"
    assert json.loads(requests[0].content) == {"name": "search"}


def test_limits_are_changed_and_removed(cistern: Terminal, requests: list[httpx.Request]) -> None:
    given = ("--max-volumes", "none", "--max-bytes", "many", "--max-queued-jobs", "7")
    code, _, _ = cistern("projects", "limit", "search", *given)

    assert code == 0
    assert (requests[1].method, requests[1].url.path) == ("PATCH", f"/api/v1/projects/{_EXAMPLE['id']}")
    assert json.loads(requests[1].content) == {"max_volumes": None, "max_bytes": "many", "max_queued_jobs": 7}, (
        "the API refuses what is no number"
    )


def test_unknown_project_is_one_line(cistern: Terminal) -> None:
    code, out, err = cistern("projects", "limit", "nobody", "--max-volumes", "1")

    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "no project named 'nobody'" in err


def test_project_of_the_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CISTERN_KEY", "cst_key")
    monkeypatch.setenv("CISTERN_PROJECT", "search")

    assert authorization("http://127.0.0.1:8000") == {"Authorization": "Bearer cst_key", "Cistern-Project": "search"}
