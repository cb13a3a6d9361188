"""The commands `cistern schedules ...`: requests and output."""

import json
from typing import Any

import httpx
import pytest

from api.schemas.jobs import JOB_EXAMPLE
from api.schemas.schedules import RUN_EXAMPLE, SCHEDULE_EXAMPLE, ScheduleIn
from tests.unit.cli_terminal import Terminal

ID = SCHEDULE_EXAMPLE["id"]
RUN = RUN_EXAMPLE | {"job_status": "partial"}
NIGHTLY = SCHEDULE_EXAMPLE | {
    "name": "nightly-expand",
    "cron": "0 2 * * *",
    "last_runs": [RUN, RUN | {"job_status": "failed"}],
}
NEVER_RUN = NIGHTLY | {"name": "new", "enabled": False, "next_run_at": None, "last_runs": []}
MISSED = NIGHTLY | {"name": "missed", "last_runs": [RUN | {"outcome": "missed", "job_id": None, "job_status": None}]}


class Api:
    """Responds like the API, and records the requests."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, Any]] = []
        self.if_match: str | None = None

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path = request.url.raw_path.decode().removeprefix("/api/v1")
        self.requests.append((request.method, path, json.loads(request.content) if request.content else None))
        match request.method, path:
            case "GET", "/schedules?name=nightly-expand&limit=11":
                return page(NIGHTLY)
            case "GET", "/schedules?limit=100":
                return page(NIGHTLY, NEVER_RUN, MISSED)
            case "GET", path if path.startswith(("/schedules?", "/volumes?")):
                return page()
            case "GET", path if path.startswith("/schedules/"):
                return httpx.Response(200, json=NIGHTLY, headers={"ETag": '"seen"'})
            case "POST", "/schedules":
                return httpx.Response(201, json=NIGHTLY)
            case "DELETE", _:
                return httpx.Response(204)
            case "POST", _:
                return httpx.Response(202, json=JOB_EXAMPLE)
            case "PATCH", _:
                self.if_match = request.headers.get("If-Match")
                return httpx.Response(200, json=NIGHTLY | json.loads(request.content))
            case _:
                return httpx.Response(200, json=JOB_EXAMPLE | {"status": "partial"})


def page(*items: dict[str, Any]) -> httpx.Response:
    return httpx.Response(200, json={"items": items, "next_cursor": None})


@pytest.fixture
def api() -> Api:
    return Api()


@pytest.fixture
def cistern(api: Api, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Terminal:
    terminal = Terminal(monkeypatch, capsys)
    terminal.handle_requests(api)
    return terminal


def test_list_prints_next_and_last_run(cistern: Terminal) -> None:
    code, out, _ = cistern("schedules", "list")

    nightly, new, missed = out.splitlines()[1:]
    assert code == 0
    assert nightly.split("  ")[0] == "nightly-expand"
    assert all(fact in nightly for fact in ("0 2 * * *", "Europe/Berlin", "bulk.expand", "2026-01-31 02:00:00"))
    assert nightly.split()[-1] == "partial", "the status of the job of its latest run"
    assert new.split()[-1] == "paused"
    assert missed.split()[-1] == "missed"
    code, out, _ = cistern("schedules", "list", "--json")
    assert [json.loads(line)["name"] for line in out.splitlines()] == ["nightly-expand", "new", "missed"]


@pytest.mark.parametrize("name", ["nightly-expand", ID])
@pytest.mark.parametrize(("command", "enabled"), [("pause", False), ("resume", True)])
def test_schedule_is_paused_and_resumed(api: Api, cistern: Terminal, name: str, command: str, *, enabled: bool) -> None:
    code, out, _ = cistern("schedules", command, name)

    assert (code, "paused" in out) == (0, not enabled)
    lookup = [] if name == ID else [("GET", "/schedules?name=nightly-expand&limit=11", None)]
    assert api.requests == [*lookup, ("PATCH", f"/schedules/{ID}", {"enabled": enabled})]


def test_run_without_waiting_prints_the_job(api: Api, cistern: Terminal) -> None:
    code, out, _ = cistern("schedules", "run", "nightly-expand", "--no-wait")

    assert (code, JOB_EXAMPLE["id"] in out) == (0, True)
    assert ("POST", f"/schedules/{ID}/run", None) in api.requests


def test_run_exits_like_the_job(api: Api, cistern: Terminal) -> None:
    code, out, _ = cistern("schedules", "run", "nightly-expand")

    assert (code, "partial" in out) == (1, True)
    assert api.requests[-1] == ("GET", f"/jobs/{JOB_EXAMPLE['id']}", None)


@pytest.mark.parametrize("command", ["run", "pause", "resume"])
def test_unknown_schedule_is_reported_and_nothing_is_changed(api: Api, cistern: Terminal, command: str) -> None:
    code, out, err = cistern("schedules", command, "weekly")

    message = "cistern: there is no schedule with the name, id or beginning of an id 'weekly'\n"
    assert (code, out, err) == (2, "", message)
    assert [method for method, _, _ in api.requests] == ["GET"]


def test_rejected_run_prints_the_reason(cistern: Terminal) -> None:
    busy = {"code": "schedule-busy", "detail": "A run of it is going on.", "request_id": "find-me"}

    def handle(request: httpx.Request) -> httpx.Response:
        return page(NIGHTLY) if request.method == "GET" else httpx.Response(409, json=busy)

    cistern.handle_requests(handle)
    code, _, err = cistern("schedules", "run", "nightly-expand")

    assert (code, err) == (2, "cistern: A run of it is going on. (schedule-busy, request find-me)\n")


CREATE = ("schedules", "create", "nightly", "--cron", "30 2 * * *", "--time-zone", "Europe/Berlin", "--action")


@pytest.mark.parametrize(
    ("options", "params"),
    [
        (("bulk.expand", "--all", "--percent", "20"), {"percent": 20}),
        (
            ("bulk.expand", "--all", "--percent", "20", "--inodes-above", "90", "--cooldown-seconds", "60"),
            {"percent": 20, "inodes_above": 90, "cooldown_seconds": 60},
        ),
        (("bulk.expand", "--label", "a=b", "--autogrow"), {"labels": {"a": "b"}, "policy": "autogrow"}),
        (("bulk.snapshot", "--backend", "fast"), {"backend": "fast", "name": "nightly"}),
        (("bulk.snapshot", "--all", "--keep-last", "7", "--prefix", "n"), {"name": "n", "keep_last": 7}),
    ],
)
def test_schedule_is_created(api: Api, cistern: Terminal, options: tuple[str, ...], params: dict[str, Any]) -> None:
    code, out, err = cistern(*CREATE, *options)

    assert (code, "nightly-expand" in out) == (0, True), err
    body = {"name": "nightly", "cron": "30 2 * * *", "time_zone": "Europe/Berlin", "action": options[0]}
    assert api.requests == [("POST", "/schedules", {**body, "params": params})]
    assert ScheduleIn.model_validate(api.requests[0][2]).new_schedule().params == params


@pytest.mark.parametrize(
    "options",
    [
        ("bulk.expand", "--percent", "20"),
        ("bulk.expand", "--all", "--percent", "20", "--keep-last", "7"),
        ("bulk.snapshot", "--all", "--percent", "20"),
        ("bulk.delete", "--all"),
    ],
)
def test_schedule_that_does_not_fit_together_is_refused(api: Api, cistern: Terminal, options: tuple[str, ...]) -> None:
    assert cistern(*CREATE, *options).code == 2
    assert api.requests == []


def test_schedule_is_deleted(api: Api, cistern: Terminal) -> None:
    assert cistern("schedules", "delete", "nightly-expand").code == 2, "nobody can be asked"
    assert not any(method == "DELETE" for method, _, _ in api.requests)
    code, out, _ = cistern("schedules", "delete", "nightly-expand", "--yes", "--json")

    assert (code, json.loads(out)["name"]) == (0, "nightly-expand")
    assert api.requests[-1] == ("DELETE", f"/schedules/{ID}", None)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--percent 30", {"labels": {"team": "search"}, "percent": 30.0}),
        ("--percent 30 --inodes-above 9", {"labels": {"team": "search"}, "percent": 30.0, "inodes_above": 9.0}),
        ("--autogrow", {"labels": {"team": "search"}, "policy": "autogrow"}),
        ("--all", {"percent": 20, "usage_above": 80}),
        ("--backend fast", {"percent": 20, "usage_above": 80, "backend": "fast"}),
        ("--max-concurrent 3", SCHEDULE_EXAMPLE["params"] | {"max_concurrent": 3}),
        ("--keep-days 7", SCHEDULE_EXAMPLE["params"] | {"keep_days": 7}),
    ],
)
def test_update_replaces_the_params_of_a_kind_and_leaves_the_others(
    api: Api, cistern: Terminal, options: str, expected: dict[str, Any]
) -> None:
    assert cistern("schedules", "update", ID, *options.split()).code == 0

    assert api.requests == [("GET", f"/schedules/{ID}", None), ("PATCH", f"/schedules/{ID}", {"params": expected})]
    assert api.if_match == '"seen"', "what others change in between is not overwritten"


def test_update_of_other_members_leaves_params_alone(api: Api, cistern: Terminal) -> None:
    options = ("--name", "weekly", "--cron", "0 3 * * 1", "--time-zone", "UTC", "--catch-up", "60")
    code, out, _ = cistern("schedules", "update", ID, *options)

    changes = {"name": "weekly", "cron": "0 3 * * 1", "time_zone": "UTC", "catch_up_seconds": 60}
    assert (code, "weekly" in out) == (0, True)
    assert api.requests == [("PATCH", f"/schedules/{ID}", changes)]


def test_update_of_nothing_sends_no_change(api: Api, cistern: Terminal) -> None:
    code, out, err = cistern("schedules", "update", ID)

    assert (code, out, api.requests) == (2, "", [])
    assert err.startswith("cistern: say what to change")
