"""`cistern jobs ...`, over the real routes: what it shows, and how it ends."""

import json
import sys
from io import BytesIO, TextIOWrapper
from uuid import UUID

import httpx
import pytest

from domain.bulk.model import Item
from domain.bulk.states import ItemStatus
from domain.jobs.states import JobStatus
from tests.unit.cli_scene import Terminal, the_api
from tests.unit.fakes import FakeServices, job_row

ANONYMOUS = UUID(int=7)


@pytest.fixture
def fake() -> FakeServices:
    return FakeServices()


@pytest.fixture
def cistern(fake: FakeServices, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Terminal:
    monkeypatch.delenv("CISTERN_URL", raising=False)
    terminal = Terminal(monkeypatch, capsys)
    terminal.answer(the_api(fake))
    return terminal


def test_jobs_are_listed_newest_first_each_in_a_line(fake: FakeServices, cistern: Terminal) -> None:
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


def test_a_list_shows_what_was_asked_for_and_as_much_as_was_asked_for(fake: FakeServices, cistern: Terminal) -> None:
    made = [fake.jobs.add(job_row("bulk.expand" if n % 2 else "volume.create")) for n in range(450)]
    asked = ("--kind", "bulk.expand", "--status", "queued", "--limit", "210", "--json")
    code, out, _ = cistern("jobs", "list", *asked)

    found = [json.loads(line) for line in out.splitlines()]
    assert (code, [job["id"] for job in found]) == (0, [str(job.id) for job in reversed(made[1::2])][:210])


def test_a_job_is_shown_with_what_failed(fake: FakeServices, cistern: Terminal) -> None:
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
    assert "items-failed: 1 of 2 failed; [bold]see[/bold] its items." in out, "nothing of it is markup"
    assert str(UUID(int=2)) not in out
    code, out, _ = cistern("jobs", "show", str(job.id), "--json")
    assert json.loads(out)["error"] == error


def test_where_a_letter_cannot_be_shown_a_question_mark_is(
    fake: FakeServices, cistern: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    paper = BytesIO()
    monkeypatch.setattr(sys, "stdout", TextIOWrapper(paper, "ascii", write_through=True))
    job = fake.jobs.add(job_row(created_by="Jörg"))

    assert cistern("jobs", "show", str(job.id)).code == 0
    assert b"J?rg" in paper.getvalue()


@pytest.mark.parametrize(("how", "code"), [("succeeded", 0), ("partial", 1), ("failed", 1), ("cancelled", 1)])
@pytest.mark.parametrize("options", [(), ("--json",)], ids=["lines", "json"])
def test_a_watch_ends_as_the_job_does(
    fake: FakeServices, cistern: Terminal, how: str, code: int, options: tuple[str, ...]
) -> None:
    fake.watcher.how = JobStatus(how)
    job = fake.jobs.add(job_row())
    said = cistern("jobs", "watch", str(job.id), *options)

    assert said.code == code
    shown = [json.loads(line)["status"] if options else line.split()[2] for line in said.out.splitlines()]
    assert shown == ["queued", how]
    assert set(fake.watcher.waited) == {1}


def test_at_a_terminal_a_watch_is_a_bar(fake: FakeServices, cistern: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    job = fake.jobs.add(job_row("bulk.expand", total=40, succeeded=30, failed=0, skipped=10))
    code, out, _ = cistern("jobs", "watch", str(job.id))

    assert (code, str(job.id) in out) == (0, False)
    assert "bulk.expand succeeded" in out
    assert "40 of 40 volumes (10 skipped)" in out
    assert "━" * 40 in out


def test_a_watch_of_a_job_that_failed_says_why(fake: FakeServices, cistern: Terminal) -> None:
    error = {"code": "storage-full", "detail": "There is no room."}
    job = fake.jobs.add(job_row(status=JobStatus.FAILED, error=error, finished_at=None))
    code, out, _ = cistern("jobs", "watch", str(job.id))

    assert (code, out.splitlines()[-1]) == (1, "storage-full: There is no room.")
    assert fake.watcher.waited == []


def test_a_job_is_cancelled(fake: FakeServices, cistern: Terminal) -> None:
    job = fake.jobs.add(job_row())
    code, out, _ = cistern("jobs", "cancel", str(job.id))

    assert (code, job.status, "cancelled" in out) == (0, "cancelled", True)
    code, out, err = cistern("jobs", "cancel", str(job.id))
    assert (code, out) == (2, "")
    assert err.startswith("cistern: The job has already ended. (job-ended, request ")


@pytest.mark.parametrize("command", ["show", "watch", "cancel"])
def test_a_job_that_is_not_there_is_said_in_one_line(cistern: Terminal, command: str) -> None:
    code, out, err = cistern("jobs", command, str(ANONYMOUS))

    assert (code, out) == (2, "")
    assert err.startswith(f"cistern: There is no job with this id. ({ANONYMOUS}) (job-not-found, request ")
    assert err.count("\n") == 1


def test_a_bad_filter_is_named_as_the_api_names_it(cistern: Terminal) -> None:
    code, _, err = cistern("jobs", "list", "--kind", "everything")

    assert (code, "kind: " in err, "(invalid, request " in err) == (2, True, True)


@pytest.mark.parametrize("arguments", [("list", "--status", "done"), ("show", "first"), ("list", "--limit", "0")])
def test_what_makes_no_sense_is_not_asked(cistern: Terminal, arguments: tuple[str, ...]) -> None:
    assert cistern("jobs", *arguments).code == 2
    assert cistern.urls == []


def test_the_api_is_where_the_option_the_environment_or_habit_says(
    cistern: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    cistern("jobs", "list")
    monkeypatch.setenv("CISTERN_URL", "http://there")
    cistern("jobs", "list")
    cistern("jobs", "list", "--url", "http://here")

    assert cistern.urls == ["http://127.0.0.1:8000", "http://there", "http://here"]


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (httpx.Response(502, text="<h1>Bad gateway</h1>"), "was answered with 502"),
        (httpx.Response(302, headers={"Location": "/login"}), "was answered with 302"),
        (httpx.Response(404, json=["nothing"]), "was answered with 404"),
        (httpx.Response(200, text="<h1>It works</h1>"), "is not Cistern's API"),
        (httpx.Response(200, json=[]), "is not Cistern's API"),
        (httpx.Response(200, json={"status": "ok"}), "says nothing of `items`"),
        (httpx.Response(200, json={"items": None}), "lists things as no Cistern does"),
        (httpx.Response(200, json={"items": ["one"]}), "lists things as no Cistern does"),
        (httpx.Response(200, json={"items": [{"id": "1"}], "next_cursor": None}), "says nothing of `created_at`"),
    ],
    ids=str,
)
def test_whoever_else_answers_is_told_from_the_api(cistern: Terminal, answer: httpx.Response, told: str) -> None:
    cistern.answer(lambda _: answer)
    code, out, err = cistern("jobs", "list")

    assert (code, out, told in err, err.count("\n")) == (2, "", True, 1), err


@pytest.mark.parametrize("command", ["show", "watch", "cancel"])
def test_a_job_of_another_api_is_none(cistern: Terminal, command: str) -> None:
    cistern.answer(lambda _: httpx.Response(200, json={"status": "succeeded"}))
    code, out, err = cistern("jobs", command, str(ANONYMOUS))

    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith("cistern: what answers is not Cistern's API: it says nothing of ")


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "ftp://here", "here", "http://here:there"])
def test_no_api_is_said_in_one_line_that_names_the_address(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], url: str
) -> None:
    code, out, err = Terminal(monkeypatch, capsys)("jobs", "list", "--url", url)

    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("cistern: ")
    assert url in err
