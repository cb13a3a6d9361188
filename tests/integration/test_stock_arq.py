"""The stock command ``arq worker.main.WorkerSettings``, as a process of its own, runs jobs and stops cleanly."""

import asyncio
import functools
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from domain.jobs.model import JobMessage
from domain.jobs.transport.job_queue import FUNCTION_NAME, message_id
from domain.services import Services
from domain.settings import Settings
from domain.volumes.service import NewVolume
from tests.integration.job_builders import MIB, ended, row, sql, until
from tests.support.worker import running_worker

ROOT = Path(__file__).parents[2]


def environment(settings: Settings, backend: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("CISTERN_")}
    return inherited | {
        "CISTERN_DATABASE_URL": settings.database_url,
        "CISTERN_REDIS_URL": settings.redis_url,
        "CISTERN_BACKENDS": f'{{"memory": "{backend}"}}',
        "CISTERN_LEASE_SECONDS": "3",
        "CISTERN_DRAIN_SECONDS": "1",
    }


@asynccontextmanager
async def stock_arq(settings: Settings, *, backend: str = "memory:") -> AsyncIterator[asyncio.subprocess.Process]:
    command = (sys.executable, "-m", "arq", "worker.main.WorkerSettings")
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, env=environment(settings, backend), stderr=asyncio.subprocess.PIPE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def stop(process: asyncio.subprocess.Process, number: signal.Signals) -> str:
    """Send a signal, wait until the process ends, and return what it wrote to standard error."""
    process.send_signal(number)
    async with asyncio.timeout(20):
        _, output = await process.communicate()
    return output.decode()


async def test_stock_arq_runs_a_job_and_stops_cleanly(services: Services) -> None:
    job = await services.volumes.request_create(NewVolume("by-stock-arq", MIB))
    async with stock_arq(services.settings) as process:
        done = await ended(services, job.id)
        output = await stop(process, signal.SIGTERM)

    assert (done.status, process.returncode) == ("succeeded", 0), output
    assert "Traceback" not in output
    assert await sql(services, "SELECT id FROM workers") == []


async def test_stock_arq_and_our_worker_share_a_queue_with_a_stock_producer(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def enqueue(messages: Iterable[JobMessage]) -> None:
        for message in messages:
            arguments = str(message.job_id), message.epoch
            await services.queue.redis.enqueue_job(FUNCTION_NAME, *arguments, _job_id=message_id(message))

    monkeypatch.setattr(services.queue, "dispatch", enqueue)
    slow = "faulty+memory:?delay_ms=200"
    settings = services.settings.model_copy(update={"backends": {"memory": slow}, "max_jobs": 2})
    async with stock_arq(settings, backend=slow), running_worker(settings):
        await until(functools.partial(_there_are_workers, services, 2))
        jobs = [await services.volumes.request_create(NewVolume(f"shared-{number}", MIB)) for number in range(40)]
        done = [await ended(services, job.id) for job in jobs]
        assert await services.queue.redis.zcard(services.queue.keys.queue("memory")) == 0

    assert {(job.status, job.attempt) for job in done} == {("succeeded", 1)}
    assert len({job.worker_id for job in done}) == 2


async def _there_are_workers(services: Services, count: int) -> bool:
    return len(await sql(services, "SELECT id FROM workers")) == count


async def test_stock_arq_releases_running_jobs_when_it_stops(services: Services, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    job = await services.volumes.request_create(NewVolume("blocked", MIB))

    async def is_running() -> bool:
        return (await row(services, job.id)).status == "running"

    async with stock_arq(services.settings, backend=f"faulty+memory:?gate={gate}") as process:
        await until(is_running)
        output = await stop(process, signal.SIGTERM)
    found = await row(services, job.id)

    assert (found.status, found.attempt, found.epoch) == ("queued", 0, 1), output
    assert "Traceback" not in output


async def test_stock_arq_reports_missing_settings_in_one_line(tmp_path: Path) -> None:
    environment_without_settings = {
        name: value for name, value in os.environ.items() if not name.startswith("CISTERN_")
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "arq", "worker.main.WorkerSettings"),
        cwd=ROOT,
        env=environment_without_settings,
        stderr=asyncio.subprocess.PIPE,
    )
    _, output = await process.communicate()

    assert process.returncode == 1
    (line,) = output.decode().splitlines()
    assert "CISTERN_DATABASE_URL must be" in line
