"""What a process says of itself: as JSON each line is JSON, whoever speaks; and what it says of a job."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import structlog

from domain.jobs.outcomes import Yielded
from domain.logs import log_fields
from domain.settings import load_log_settings
from domain.storage.memory import MemoryDriver
from tests.conftest import LogAtDebug
from tests.unit.worker_fakes import FakeJobEngine, a_job, a_runner
from worker import runner as runner_module

ROOT = Path(__file__).parents[2]
SETTLED = "job.settled"


def spoken(code: str, tmp_path: Path, **settings: str) -> list[str]:
    """The lines that a process of its own writes when it has set up logging and runs ``code``."""
    begin = "from domain.logs import *; from domain.settings import *; configure_logging(load_log_settings())"
    own = {name: value for name, value in os.environ.items() if not name.startswith("CISTERN_")}
    done = subprocess.run(
        [sys.executable, "-c", f"import logging, warnings\n{begin}\n{code}"],
        cwd=tmp_path,
        env=own | {"PYTHONPATH": str(ROOT)} | {f"CISTERN_{name}": value for name, value in settings.items()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == ""
    return done.stderr.splitlines()


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
def test_as_json_each_line_is_json_whoever_speaks(tmp_path: Path, code: str, event: str) -> None:
    uvicorn = "import structlog, logging.config; from uvicorn.config import LOGGING_CONFIG as U; S = 'uvicorn.error'\n"
    (line,) = map(json.loads, spoken(uvicorn + code, tmp_path, LOG_FORMAT="json"))

    assert event in line["event"]
    assert {"level", "timestamp"} <= line.keys()


def test_a_server_that_was_told_to_be_silent_about_requests_stays_so(tmp_path: Path) -> None:
    silence = "logging.getLogger('uvicorn.access').handlers = []; logging.getLogger('uvicorn.access').propagate = False"
    code = f"{silence}\nconfigure_logging(load_log_settings())\nlogging.getLogger('uvicorn.access').info('GET /')"

    assert spoken(code, tmp_path, LOG_FORMAT="json") == []


def test_what_the_libraries_say_at_info_is_held_back_even_after_arq_has_set_its_levels(tmp_path: Path) -> None:
    code = (
        "import logging.config, arq.logs, arq.worker\nlogging.config.dictConfig(arq.logs.default_log_config(False))\n"
    )

    assert spoken(f"{code}logging.getLogger('arq.worker').info('hello')", tmp_path) == []


@pytest.mark.parametrize("level", ["loud", "debug"])
def test_how_to_log_is_known_even_when_it_is_not_said_properly(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, level: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CISTERN_LOG_LEVEL", level)
    monkeypatch.setenv("CISTERN_MAX_JOBS", "many")

    assert load_log_settings().log_level == ("debug" if level == "debug" else "info")


def test_what_there_is_none_of_is_not_called_none() -> None:
    assert log_fields(job_id=UUID(int=1), volume_id=None) == {"job_id": str(UUID(int=1))}


async def logged(**columns: Any) -> list[Any]:
    """The lines about one job that is answered once: event, level, and what they are bound to."""
    job = a_job()
    for name, value in columns.items():
        setattr(job, name, value)
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as logs:
        await a_runner(FakeJobEngine(job), MemoryDriver()).handle(job.dispatch)
    assert {(line["job_id"], line["kind"], line["attempt"]) for line in logs} == {(str(job.id), job.kind, job.attempt)}
    assert {line["volume_id"] for line in logs} == {str(job.volume_id)}
    return [(line["event"], line["log_level"]) for line in logs]


async def test_a_job_has_one_line_when_it_starts_and_one_when_it_ends() -> None:
    assert await logged() == [("job.started", "info"), (SETTLED, "info")]
    assert await logged(epoch=3) == [("job.started", "info"), (SETTLED, "info")]


async def test_the_slices_of_a_lane_are_no_starts(log_at_debug: LogAtDebug) -> None:
    log_at_debug(runner_module)
    lane = uuid4()

    assert await logged(parent_id=lane) == [("job.started", "info"), (SETTLED, "info")]
    assert await logged(parent_id=lane, epoch=3) == [("job.started", "debug"), (SETTLED, "info")]
    assert await logged(parent_id=lane, epoch=3, attempt=1) == [("job.started", "info"), (SETTLED, "info")]


async def test_a_lane_that_comes_back_in_a_second_has_not_ended(log_at_debug: LogAtDebug) -> None:
    log_at_debug(runner_module)
    job = a_job()
    engine = FakeJobEngine(job)
    claim = await engine.claim(job.dispatch)
    assert claim is not None
    with structlog.testing.capture_logs() as logs:
        await a_runner(engine, MemoryDriver()).settle(claim.job, Yielded())

    assert [(line["event"], line["log_level"]) for line in logs] == [(SETTLED, "debug")]
