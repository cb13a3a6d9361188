"""The dashboard without a browser: what its templates and files contain, and how values are put into words."""

import re
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import httpx
import pytest
from jinja2 import Environment

from api.access import PAGES
from api.dashboard import rendering
from api.dashboard.rendering import ago_text, duration_text, exact_size, readable_text, size_text
from api.dashboard.views.schedules import cron_words, next_times
from api.dashboard.views.words import KIND_WORDS, STATUS_TONES
from api.security_headers import PAGE_POLICY, POLICY
from domain.access.model import Role
from domain.bulk.model import ItemStatus
from domain.errors import Invalid
from domain.jobs.kinds import JobKind
from domain.jobs.states import ENDED, JobStatus
from domain.operations import BUSY, SnapshotState, VolumeState
from domain.schedules.model import RunOutcome
from domain.volumes.attachments.model import AttachmentState
from tests.support.browser import axe_digests
from tests.unit.fake_keys import bearer

ROOT = Path(__file__).parents[2]
TEMPLATES = sorted((ROOT / "api" / "dashboard" / "templates").iterdir())
STATIC = sorted(file for file in (ROOT / "api" / "dashboard" / "static").iterdir() if file.is_file())
VENDORED = {"uplot.iife.min.js", "uplot.min.css"}


@pytest.mark.parametrize("file", TEMPLATES, ids=lambda file: file.name)
def test_template_has_no_inline_script_style_or_handler_and_no_other_origin(file: Path) -> None:
    text = file.read_text()

    assert re.findall(r"<script(?![^>]* src=)", text) == []
    assert re.findall(r"<style|\sstyle=|\son\w+=|\"https?:|\"//", text) == []


@pytest.mark.parametrize("file", TEMPLATES, ids=lambda file: file.name)
def test_template_marks_nothing_as_safe(file: Path) -> None:
    assert re.findall(r"\|\s*safe|autoescape|Markup", file.read_text()) == []


def test_every_value_is_escaped() -> None:
    environment: Environment = rendering._templates

    assert environment.autoescape is True
    assert environment.from_string("{{ text }}").render(text="<script>") == "&lt;script&gt;"


@pytest.mark.parametrize("file", [file for file in STATIC if file.suffix == ".js"], ids=lambda file: file.name)
def test_script_makes_no_markup_of_text(file: Path) -> None:
    assert (
        re.findall(r"innerHTML|insertAdjacentHTML|document\.write|eval\(|localStorage|https?://", file.read_text())
        == []
    )


def test_every_file_that_a_template_names_exists() -> None:
    named = {name for file in TEMPLATES for name in re.findall(r"/static/([\w.-]+)", file.read_text())}

    assert named == {"cistern.css", "cistern.svg", "main.js"} | VENDORED
    imported = {
        name for file in STATIC if file.suffix == ".js" for name in re.findall(r'"\./([\w.]+)"', file.read_text())
    }
    assert named | imported == {file.name for file in STATIC} | VENDORED


async def test_static_files_are_sent_once(client: httpx.AsyncClient) -> None:
    for file in STATIC:
        first = await client.get(f"/static/{file.name}")
        again = await client.get(f"/static/{file.name}", headers={"If-None-Match": first.headers["etag"]})
        assert (first.status_code, first.content, again.status_code) == (200, file.read_bytes(), 304)
        assert first.headers["content-type"].partition(";")[0] in ("text/css", "text/javascript", "image/svg+xml")


@pytest.mark.parametrize("name", ["nothing.js", "..%2fpages.py", "base.html"])
async def test_no_other_file_is_served(client: httpx.AsyncClient, name: str) -> None:
    assert (await client.get(f"/static/{name}")).status_code == 404


async def test_pages_have_the_policy_of_pages_and_are_kept_nowhere(client: httpx.AsyncClient) -> None:
    page = await client.get("/sign-in")

    assert (page.headers["content-security-policy"], page.headers["cache-control"]) == (PAGE_POLICY, "no-store")
    assert (await client.get("/static/main.js")).headers["content-security-policy"] == POLICY
    for path in PAGES:
        response = await client.get(path.replace("{}", "x"), headers=bearer(Role.VIEWER))
        assert response.headers["content-security-policy"] == PAGE_POLICY, path


async def test_error_of_a_page_is_a_page(client: httpx.AsyncClient) -> None:
    for path, status in (
        ("/jobs/01a0b1c2-0000-7000-8000-000000000002", 404),
        ("/jobs/x", 422),
        ("/jobs?status=x", 422),
    ):
        response = await client.get(path)
        assert (response.status_code, response.headers["content-type"]) == (status, "text/html; charset=utf-8"), path
    assert "<h1>Job not found</h1>" in (await client.get("/jobs/01a0b1c2-0000-7000-8000-000000000002")).text


def test_every_kind_has_words_and_every_end_a_tone() -> None:
    assert set(KIND_WORDS) == set(JobKind)
    ends = {*ENDED, ItemStatus.SUCCEEDED, ItemStatus.FAILED, ItemStatus.SKIPPED, VolumeState.ERROR, SnapshotState.READY}
    assert ends | {*RunOutcome, JobStatus.QUEUED, AttachmentState.ATTACHED} <= set(STATUS_TONES)
    assert {*VolumeState, *SnapshotState, *AttachmentState} - BUSY <= set(STATUS_TONES), "those that move are busy"


@pytest.mark.parametrize(
    ("cron", "words"),
    [
        ("0 2 * * *", "every day at 02:00"),
        ("30 3 * * 1", "every Monday at 03:30"),
        ("30 3 * * 7", "every Sunday at 03:30"),
        ("5 4 * * 1-5", "from Monday to Friday at 04:05"),
        ("15 * * * *", "every hour, 15 min past"),
        ("*/10 * * * *", "every 10 minutes"),
        ("0 0 1 * *", "on day 1 of every month at 00:00"),
        *((other, other) for other in ("0 2 * 3 *", "0 2,3 * * *", "0 0 1 * 1", "never", "1 2 3 4 5 6")),
    ],
)
def test_usual_expressions_are_put_into_words(cron: str, words: str) -> None:
    assert cron_words(cron) == words


def test_next_times_are_those_of_the_schedule() -> None:
    times = next_times("0 2 * * *", "UTC")

    assert [time.hour for time in times] == [2] * 5
    assert {later - earlier for earlier, later in pairwise(times)} == {timedelta(days=1)}
    with pytest.raises(Invalid):
        next_times("never", "UTC")


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (None, "\N{EN DASH}"),
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (10 * 2**30, "10 GiB"),
        (2**50, "1024 TiB"),
    ],
)
def test_sizes_are_short(size: int | None, text: str) -> None:
    assert size_text(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "\N{EN DASH}"), (0.0123, "12 ms"), (59.9, "1 min"), (7500, "2 h 5 min"), (90_061, "1 d 1 h"), (-5, "0 ms")],
)
def test_lengths_of_time_have_two_units(seconds: float | None, text: str) -> None:
    assert duration_text(seconds) == text


def test_times_are_told_as_seen_from_now() -> None:
    now = datetime.now(UTC)

    assert ago_text(now) == "now"
    assert ago_text(now - timedelta(minutes=5)) == "5 min ago"
    assert ago_text(now + timedelta(hours=2, seconds=30)).startswith("in 2 h")


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0B"), (1, "1B"), (1536, "1536B"), (5 << 30, "5GiB"), (1 << 50, "1024TiB")]
)
def test_size_in_a_form_means_the_same_when_it_is_read_again(size: int, text: str) -> None:
    assert exact_size(size) == text


def test_control_characters_are_escaped_but_lines_stay() -> None:
    assert readable_text("a\n\u202eb\x1b") == "a\n\\u202eb\\x1b"


def test_vendored_files_are_those_that_the_readme_names() -> None:
    text = (ROOT / "tests" / "support" / "axe" / "README.md").read_text()
    named = re.findall(r"^    ([0-9a-f]{64})  (\S+)$", text, re.MULTILINE)

    assert axe_digests() == {name: digest for digest, name in named}
