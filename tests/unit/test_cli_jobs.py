"""The commands `cistern jobs ...` over the real routes: output and exit status."""

import json
import re
import sys
from datetime import UTC, datetime, timedelta
from io import BytesIO, TextIOWrapper
from typing import Any
from uuid import UUID

import httpx
import pytest

from api.cli.columns import estimated_end, rate_text
from domain.bulk.model import Item, ItemStatus
from domain.jobs.states import JobStatus
from tests.unit.cli_terminal import Terminal, api_over
from tests.unit.fakes import FakeServices, job_row

UNKNOWN_ID = UUID(int=7)


@pytest.fixture
def fake() -> FakeServices:
    return FakeServices()


@pytest.fixture
def cistern(fake: FakeServices, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Terminal:
    monkeypatch.delenv("CISTERN_URL", raising=False)
    terminal = Terminal(monkeypatch, capsys)
    terminal.handle_requests(api_over(fake))
    return terminal


def test_list_prints_one_line_per_job_newest_first(fake: FakeServices, cistern: Terminal) -> None:
    first = fake.jobs.add(job_row(status=JobStatus.SUCCEEDED))
    second = fake.jobs.add(job_row("bulk.expand", total=40, succeeded=10, failed=1, skipped=2))
    code, out, _ = cistern("jobs", "list")

    title, *lines = out.splitlines()
    assert (code, title.split()[:4]) == (0, ["id", "kind", "status", "progress"])
    assert [line.split()[:3] for line in lines] == [
        [str(second.id), "bulk.expand", "queued"],
        [str(first.id), "volume.create", "succeeded"],
    ]
    assert "13 of 40 volumes (1 failed, 2 skipped)" in lines[0]
    assert "2026-01-31 12:00:00" in lines[0]


def test_list_applies_filters_and_limit(fake: FakeServices, cistern: Terminal) -> None:
    jobs = [fake.jobs.add(job_row("bulk.expand" if n % 2 else "volume.create")) for n in range(450)]
    options = ("--kind", "bulk.expand", "--status", "queued", "--limit", "210", "--json")
    code, out, _ = cistern("jobs", "list", *options)

    listed = [json.loads(line) for line in out.splitlines()]
    assert (code, [job["id"] for job in listed]) == (0, [str(job.id) for job in reversed(jobs[1::2])][:210])


def test_show_prints_a_job_and_its_failed_items(fake: FakeServices, cistern: Terminal) -> None:
    error = {"code": "items-failed", "detail": "1 of 2 failed; [bold]see[/bold] its items."}
    job = fake.jobs.add(
        job_row("bulk.expand", status=JobStatus.PARTIAL, error=error, total=2, succeeded=1, failed=1, skipped=0)
    )
    fake.bulk.ledger[job.id] = [
        Item(volume_id=UUID(int=1), status=ItemStatus.FAILED, code="storage-full", detail="No room."),
        Item(volume_id=UUID(int=2), status=ItemStatus.SUCCEEDED, code="expanded"),
    ]
    code, out, _ = cistern("jobs", "show", str(job.id))

    assert code == 0
    assert all(fact in out for fact in (str(job.id), "partial", "2 of 2 volumes (1 failed)", "storage-full  No room."))
    assert "items-failed: 1 of 2 failed; [bold]see[/bold] its items." in out, "the text is not parsed as markup"
    assert str(UUID(int=2)) not in out
    code, out, _ = cistern("jobs", "show", str(job.id), "--json")
    assert json.loads(out)["error"] == error


def test_character_that_cannot_be_encoded_is_replaced(
    fake: FakeServices, cistern: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = BytesIO()
    monkeypatch.setattr(sys, "stdout", TextIOWrapper(output, "ascii", write_through=True))
    job = fake.jobs.add(job_row(created_by="Jörg"))

    assert cistern("jobs", "show", str(job.id)).code == 0
    assert b"J?rg" in output.getvalue()


@pytest.mark.parametrize(("status", "code"), [("succeeded", 0), ("partial", 1), ("failed", 1), ("cancelled", 1)])
@pytest.mark.parametrize("options", [(), ("--json",)], ids=["lines", "json"])
def test_watch_exit_status_follows_the_job(
    fake: FakeServices, cistern: Terminal, status: str, code: int, options: tuple[str, ...]
) -> None:
    fake.watcher.final_status = JobStatus(status)
    job = fake.jobs.add(job_row())
    result = cistern("jobs", "watch", str(job.id), *options)

    assert result.code == code
    printed = [json.loads(line)["status"] if options else line.split()[2] for line in result.out.splitlines()]
    assert printed == ["queued", status]
    assert set(fake.watcher.waits) == {1}


def test_watch_shows_a_bar_on_a_terminal(
    fake: FakeServices, cistern: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    job = fake.jobs.add(job_row("bulk.expand", total=40, succeeded=30, failed=0, skipped=10))
    code, out, _ = cistern("jobs", "watch", str(job.id))

    assert (code, str(job.id) in out) == (0, False)
    assert "bulk.expand succeeded" in out
    assert "40 of 40 volumes (10 skipped)" in out
    assert "━" * 40 in out


def test_bar_of_a_bulk_job_has_its_rate_and_the_time_that_is_left(
    fake: FakeServices, cistern: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    started = datetime.now(UTC) - timedelta(seconds=10)
    counts = {"total": 400, "succeeded": 90, "failed": 6, "skipped": 4}
    job = fake.jobs.add(job_row("bulk.expand", status=JobStatus.RUNNING, started_at=started, **counts))
    _, out, _ = cistern("jobs", "watch", str(job.id))

    assert "100 of 400 volumes (6 failed, 4 skipped)" in out
    assert re.search(r"\b(10|9\.\d)/s\b", out)
    assert re.search(r"\b0:00:(29|30|31) left", out)


@pytest.mark.parametrize(
    ("unit", "rate", "text"),
    [
        ("volumes", 1234.5, "1,234/s"),
        ("volumes", 0.0312, "0.031/s"),
        ("bytes", 3 * 2**20, "3 MiB/s"),
        ("bytes", None, ""),
    ],
)
def test_rate_is_in_the_unit_of_the_job(unit: str, rate: float | None, text: str) -> None:
    assert rate_text({"progress": {"unit": unit, "per_second": rate}}) == text


def test_job_without_progress_has_no_rate_and_no_end() -> None:
    job: dict[str, Any] = {"progress": None}

    assert (rate_text(job), estimated_end(job)) == ("", None)


def test_watch_prints_the_error_of_a_failed_job(fake: FakeServices, cistern: Terminal) -> None:
    error = {"code": "storage-full", "detail": "There is no room."}
    job = fake.jobs.add(job_row(status=JobStatus.FAILED, error=error, finished_at=None))
    code, out, _ = cistern("jobs", "watch", str(job.id))

    assert (code, out.splitlines()[-1]) == (1, "storage-full: There is no room.")
    assert fake.watcher.waits == []


def test_cancel_cancels_a_job(fake: FakeServices, cistern: Terminal) -> None:
    job = fake.jobs.add(job_row())
    code, out, _ = cistern("jobs", "cancel", str(job.id))

    assert (code, job.status, "cancelled" in out) == (0, "cancelled", True)
    code, out, err = cistern("jobs", "cancel", str(job.id))
    assert (code, out) == (2, "")
    assert err.startswith("cistern: The job has already ended. (job-ended, request ")


@pytest.mark.parametrize("command", ["show", "watch", "cancel"])
def test_unknown_job_is_reported_in_one_line(cistern: Terminal, command: str) -> None:
    code, out, err = cistern("jobs", command, str(UNKNOWN_ID))

    assert (code, out) == (2, "")
    assert err.startswith(f"cistern: There is no job with this id. ({UNKNOWN_ID}) (job-not-found, request ")
    assert err.count("\n") == 1


def test_error_of_an_invalid_filter_is_that_of_the_api(cistern: Terminal) -> None:
    code, _, err = cistern("jobs", "list", "--kind", "everything")

    assert (code, "kind: " in err, "(invalid, request " in err) == (2, True, True)


@pytest.mark.parametrize("arguments", [("list", "--status", "done"), ("list", "--limit", "0")])
def test_invalid_arguments_send_no_request(cistern: Terminal, arguments: tuple[str, ...]) -> None:
    assert cistern("jobs", *arguments).code == 2
    assert cistern.urls == []


def test_url_is_taken_from_option_environment_or_default(cistern: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    cistern("jobs", "list")
    monkeypatch.setenv("CISTERN_URL", "http://there")
    cistern("jobs", "list")
    cistern("jobs", "list", "--url", "http://here")

    assert cistern.urls == ["http://127.0.0.1:8000", "http://there", "http://here"]


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (httpx.Response(502, text="<h1>Bad gateway</h1>"), "returned status 502"),
        (httpx.Response(302, headers={"Location": "/login"}), "returned status 302"),
        (httpx.Response(404, json=["nothing"]), "returned status 404"),
        (httpx.Response(200, text="<h1>It works</h1>"), "is not Cistern's API"),
        (httpx.Response(200, json=[]), "is not Cistern's API"),
        (httpx.Response(200, json={"status": "ok"}), "has no member `items`"),
        (httpx.Response(200, json={"items": None}), "malformed list"),
        (httpx.Response(200, json={"items": ["one"]}), "malformed list"),
        (httpx.Response(200, json={"items": [{"id": "1"}], "next_cursor": None}), "has no member `volume_id`"),
    ],
    ids=str,
)
def test_response_of_another_server_is_an_error(cistern: Terminal, response: httpx.Response, message: str) -> None:
    cistern.handle_requests(lambda _: response)
    code, out, err = cistern("jobs", "list")

    assert (code, out, message in err, err.count("\n")) == (2, "", True, 1), err


@pytest.mark.parametrize("command", ["show", "watch", "cancel"])
def test_object_of_another_api_is_an_error(cistern: Terminal, command: str) -> None:
    cistern.handle_requests(lambda _: httpx.Response(200, json={"status": "succeeded"}))
    code, out, err = cistern("jobs", command, str(UNKNOWN_ID))

    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith("cistern: the server is not Cistern's API: its response has no member ")


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "ftp://here", "here", "http://here:there"])
def test_unreachable_api_is_reported_in_one_line_with_its_url(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], url: str
) -> None:
    code, out, err = Terminal(monkeypatch, capsys)("jobs", "list", "--url", url)

    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("cistern: ")
    assert url in err


NASTY = "\x1b[2J\x1b]52;c;AA==\x07\n\x9b31m\u202e"
CONTROLS = set(NASTY) - set("[2J]5;cA=31m\n")


@pytest.mark.parametrize("command", ["list", "show", "watch"])
def test_control_characters_of_an_answer_never_reach_the_terminal(
    fake: FakeServices, cistern: Terminal, command: str
) -> None:
    error = {"code": "broken", "detail": f"x{NASTY}"}
    job = fake.jobs.add(job_row(f"volume{NASTY}", status=JobStatus.FAILED, error=error, created_by=NASTY))
    _, out, err = cistern("jobs", command, *([] if command == "list" else [str(job.id)]))

    assert not CONTROLS & set(out + err)
    assert not any(line.startswith("\\x9b31m") for line in out.splitlines())
    assert "\\x1b" in out


def test_error_of_a_foreign_server_never_reaches_the_terminal_as_it_is(cistern: Terminal) -> None:
    problem = {"detail": f"x{NASTY}", "code": f"a{NASTY}", "request_id": NASTY}
    cistern.handle_requests(lambda _: httpx.Response(404, json=problem))
    code, out, err = cistern("jobs", "show", str(UNKNOWN_ID))

    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert not CONTROLS & set(err)
