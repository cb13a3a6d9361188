"""The commands `cistern backends` and `cistern workers` over the real routes."""

import json

import pytest

from domain.jobs.states import JobStatus
from tests.unit.cli_terminal import Terminal, api_over
from tests.unit.fakes import NOON, FakeServices, job_row


@pytest.fixture
def fake() -> FakeServices:
    return FakeServices()


@pytest.fixture
def cistern(fake: FakeServices, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Terminal:
    monkeypatch.delenv("CISTERN_URL", raising=False)
    terminal = Terminal(monkeypatch, capsys)
    terminal.handle_requests(api_over(fake))
    return terminal


def test_backends_are_listed_with_who_serves_them(fake: FakeServices, cistern: Terminal) -> None:
    fake.directory.fail("null", "it is not mounted")
    code, out, _ = cistern("backends")
    memory, null = out.splitlines()[1:]

    assert (code, memory.split()[:2], memory.split()[-1]) == (0, ["memory", "memory"], "worker-1")
    assert "10 GiB" in memory
    assert null.rstrip().endswith("worker-1: it is not mounted")
    assert [json.loads(line)["name"] for line in cistern("backends", "--json").out.splitlines()] == ["memory", "null"]


def test_workers_are_listed_with_what_they_run(fake: FakeServices, cistern: Terminal) -> None:
    job = fake.jobs.add(job_row("volume.expand", status=JobStatus.RUNNING, started_at=NOON))
    code, out, _ = cistern("workers")
    (line,) = out.splitlines()[1:]

    assert (code, line.split()[:3]) == (0, ["worker-1", "42", "alive"])
    assert f"1 of 10  memory null  volume.expand {job.id}" in line
    (listed,) = map(json.loads, cistern("workers", "--json").out.splitlines())
    assert [one["id"] for one in listed["jobs"]] == [str(job.id)]
