"""Logging: with the JSON format every line is JSON, of libraries too; and the lines that a job writes."""

import asyncio
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args
from uuid import UUID, uuid4

import pytest
import structlog

from domain.jobs.attempt import Outcome, Yielded
from domain.jobs.model import Job
from domain.logs import add_lazy_fields, configure_logging, log_fields
from domain.settings import Settings, load_log_settings
from domain.storage.context import Grant
from domain.storage.driver import StorageDriver
from domain.storage.memory import MemoryDriver
from tests.conftest import LogAtDebug
from tests.unit.worker_fakes import BuggyDriver, FakeJobEngine, a_job, a_runner, faulty
from worker import runner as runner_module

ROOT = Path(__file__).parents[2]
SETTLED = "job.settled"


def output_of(code: str, tmp_path: Path, **settings: str) -> list[str]:
    """Return the lines on standard error of a new process that sets up logging and runs ``code``."""
    set_up = "from domain.logs import *; from domain.settings import *; configure_logging(load_log_settings())"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CISTERN_")}
    process = subprocess.run(
        [sys.executable, "-c", f"import logging, warnings\n{set_up}\n{code}"],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": str(ROOT)} | {f"CISTERN_{name}": value for name, value in settings.items()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.stdout == ""
    return process.stderr.splitlines()


@pytest.mark.parametrize(
    ("code", "event"),
    [
        ("structlog.get_logger('domain').info('volume.expanded', volume_id='a')", "volume.expanded"),
        ("logging.getLogger('asyncio').error('slow %s', 'callback')", "slow callback"),
        ("logging.getLogger('arq.worker').warning('lost')", "lost"),
        ("warnings.warn('old news', stacklevel=1)", "old news"),
        ("raise RuntimeError('no\\nway')", "process.crashed"),
        ("logging.config.dictConfig(U)\nconfigure_logging(load_log_settings())\nlogging.getLogger(S).info('up')", "up"),
    ],
)
def test_every_line_is_json_with_the_json_format(tmp_path: Path, code: str, event: str) -> None:
    uvicorn = "import structlog, logging.config; from uvicorn.config import LOGGING_CONFIG as U; S = 'uvicorn.error'\n"
    (line,) = map(json.loads, output_of(uvicorn + code, tmp_path, LOG_FORMAT="json"))

    assert event in line["event"]
    assert {"level", "timestamp"} <= line.keys()


def test_disabled_access_log_stays_disabled(tmp_path: Path) -> None:
    silence = "logging.getLogger('uvicorn.access').handlers = []; logging.getLogger('uvicorn.access').propagate = False"
    code = f"{silence}\nconfigure_logging(load_log_settings())\nlogging.getLogger('uvicorn.access').info('GET /')"

    assert output_of(code, tmp_path, LOG_FORMAT="json") == []


def test_info_lines_of_libraries_are_dropped_even_after_arq_sets_its_levels(tmp_path: Path) -> None:
    code = (
        "import logging.config, arq.logs, arq.worker\nlogging.config.dictConfig(arq.logs.default_log_config(False))\n"
    )

    assert output_of(f"{code}logging.getLogger('arq.worker').info('hello')", tmp_path) == []


@pytest.mark.parametrize("level", ["loud", "debug"])
def test_log_settings_are_readable_even_if_other_settings_are_invalid(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, level: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CISTERN_LOG_LEVEL", level)
    monkeypatch.setenv("CISTERN_MAX_JOBS", "many")

    assert load_log_settings().log_level == ("debug" if level == "debug" else "info")


def test_logger_that_was_used_before_follows_a_second_configuration() -> None:
    log = structlog.get_logger("used-before")
    log.info("before")
    configure_logging(Settings(_env_file=None))
    with structlog.testing.capture_logs() as lines:
        log.info("after")

    assert [line["event"] for line in lines] == ["after"]


def test_lines_go_to_the_standard_error_of_the_moment_not_to_a_closed_one(monkeypatch: pytest.MonkeyPatch) -> None:
    former, present = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", former)
    configure_logging(Settings(_env_file=None))
    monkeypatch.setattr(sys, "stderr", present)
    former.close()
    structlog.get_logger("replaced-stderr").info("written")

    assert "written" in present.getvalue()
    assert "Logging error" not in present.getvalue()


def test_log_fields_are_text_and_leave_none_out() -> None:
    assert log_fields(job_id=UUID(int=1), volume_id=None) == {"job_id": str(UUID(int=1))}


async def lines_of(job: Job, driver: StorageDriver | None = None, *, queue_ms: int = 0) -> list[Any]:
    """Return the log lines of handling a job once."""
    engine = FakeJobEngine(job)
    engine.queue_ms = queue_ms
    with structlog.testing.capture_logs(processors=[add_lazy_fields]) as logs:
        await a_runner(engine, driver or MemoryDriver()).handle(job.message)
    return logs


async def events_of(**columns: Any) -> list[Any]:
    """Return event and level of each line of a job, whose ids must be in all of them."""
    job = a_job(**columns)
    logs = await lines_of(job)
    assert {(line["job_id"], line["kind"], line["attempt"]) for line in logs} == {(str(job.id), job.kind, job.attempt)}
    assert {line["volume_id"] for line in logs} == {str(job.volume_id)}
    return [(line["event"], line["log_level"]) for line in logs]


async def test_job_has_one_line_when_it_starts_and_one_when_it_is_settled() -> None:
    assert await events_of() == [("job.started", "info"), (SETTLED, "info")]
    assert await events_of(epoch=3) == [("job.started", "info"), (SETTLED, "info")]


async def test_later_slices_of_a_lane_start_at_debug(log_at_debug: LogAtDebug) -> None:
    log_at_debug(runner_module)
    lane = uuid4()

    assert await events_of(parent_id=lane) == [("job.started", "info"), (SETTLED, "info")]
    assert await events_of(parent_id=lane, epoch=3) == [("job.started", "debug"), (SETTLED, "info")]
    assert await events_of(parent_id=lane, epoch=3, attempt=1) == [("job.started", "info"), (SETTLED, "info")]


async def test_yielded_lane_is_settled_at_debug(log_at_debug: LogAtDebug) -> None:
    log_at_debug(runner_module)
    job = a_job()
    engine = FakeJobEngine(job)
    claim = await engine.claim(job.message)
    assert claim is not None
    with structlog.testing.capture_logs() as logs:
        await a_runner(engine, MemoryDriver()).settle(claim.job, Yielded(), duration=0.5)

    assert [(line["event"], line["log_level"]) for line in logs] == [(SETTLED, "debug")]


@pytest.mark.parametrize(
    ("driver", "fields"),
    [
        (MemoryDriver(), {"status": "succeeded", "outcome": "succeeded"}),
        (faulty("fail=create:storage-full"), {"status": "failed", "outcome": "failed", "code": "storage-full"}),
        (faulty("fail=create:storage-busy"), {"status": "queued", "outcome": "retry", "code": "storage-busy"}),
        (BuggyDriver(), {"status": "queued", "outcome": "retry", "code": "internal"}),
    ],
)
async def test_settled_line_has_status_outcome_attempt_and_times(driver: StorageDriver, fields: dict[str, str]) -> None:
    job = a_job(attempt=1)
    settled = (await lines_of(job, driver, queue_ms=1234))[-1]
    ids = {"job_id": str(job.id), "volume_id": str(job.volume_id), "kind": "volume.create"}

    assert 0 <= settled.pop("duration_ms") < 10_000
    assert settled == {"event": SETTLED, "log_level": "info", "attempt": 2, "queue_ms": 1234} | ids | fields


async def test_duration_is_the_time_from_the_claim_to_the_outcome() -> None:
    settled = (await lines_of(a_job(), SlowDriver()))[-1]

    assert 50 <= settled["duration_ms"] < 10_000


async def test_line_of_a_superseded_attempt_has_its_outcome_and_no_status() -> None:
    superseded = (await lines_of(a_job(), faulty("fail=create:fence-refused")))[-1]

    assert (superseded["event"], superseded["outcome"]) == ("job.superseded", "superseded")
    assert not superseded.keys() & {"status", "queue_ms", "duration_ms"}


def test_every_outcome_has_a_name_of_its_own() -> None:
    outcomes = get_args(Outcome)

    assert len({outcome.name for outcome in outcomes}) == len(outcomes)


class SlowDriver(MemoryDriver):
    """Storage that takes 50 ms."""

    async def create(self, volume_id: UUID, size: int, grant: Grant, filesystem: str | None = None) -> int:
        await asyncio.sleep(0.05)
        return await super().create(volume_id, size, grant)


@pytest.mark.parametrize(
    "code",
    [
        "structlog.get_logger('worker').info('job.claimed', message=F)",
        "structlog.get_logger('worker').info('job.claimed', messages=[F])",
        "logging.getLogger('arq.worker').warning('job %s not found', F)",
        "try:\n    raise ValueError(F)\nexcept ValueError:\n    structlog.get_logger('worker').exception('job.failed')",
    ],
    ids=["field", "list", "library", "exception"],
)
def test_text_of_others_forges_no_line_and_reaches_no_terminal(tmp_path: Path, code: str) -> None:
    forged = "F = 'x\\n2026-01-01T00:00:00Z [info     ] job.forged\\x1b]52;c;AA==\\x07\\x9b\\u202e'\n"
    lines = output_of(forged + code, tmp_path)

    assert any("job.forged" in line for line in lines)
    assert not any(line.startswith("2026-01-01") for line in lines)
    assert not set("".join(lines)) & set("\x1b\x07\x9b\u202e")


def test_names_of_fields_forge_no_line_either(tmp_path: Path) -> None:
    (line,) = output_of("structlog.get_logger('worker').info('x', **{'a\\n2026': 1})", tmp_path)

    assert "a\\n2026" in line
