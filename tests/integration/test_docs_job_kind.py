"""The example of a job kind, carried out on real servers by the parts of a real worker."""

import os
import sys
from collections.abc import AsyncIterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from domain.jobs.engine import JobEngine
from domain.jobs.model import Worker
from domain.jobs.service import JobService
from domain.services import Services
from domain.storage.context import Fence, Grant
from tests.integration.job_builders import MIB, a_volume, row, volume_row
from worker.performer import AttemptPerformer
from worker.runner import Runner

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "job_kind.py"


@pytest.fixture(scope="module")
def example() -> Any:
    spec = spec_from_file_location("job_kind_example", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def measuring(example: Any, services: Services) -> Any:
    return example.MeasureHandler(services.database, services.queue, services.backends, max_attempts=2)


@pytest.fixture
async def runner(example: Any, measuring: Any, services: Services) -> AsyncIterator[Runner]:
    """A worker that knows the new kind."""
    table = {**services.handlers, example.KIND: measuring}
    worker = Worker(id=uuid4(), host="test", pid=os.getpid())
    engine = JobEngine(
        services.database,
        services.queue,
        table,
        worker=worker,
        served=services.backends.served,
        lease=services.settings.lease_seconds,
    )
    runner = Runner(engine, services.queue, AttemptPerformer(table, services.retry_policy), slots=1)
    yield runner
    await runner.close()


async def test_a_job_of_the_new_kind_is_carried_out_and_its_effect_is_recorded(
    services: Services, measuring: Any, runner: Runner
) -> None:
    volume = await a_volume(services)
    await services.backends.get("memory").create(volume.id, MIB, Grant(uuid4(), Fence(1, 0), float("inf")))
    job = await measuring.request_measure(volume.id)
    await runner.process(job.message)
    settled = await row(services, job.id)

    assert (settled.status, settled.result) == ("succeeded", {"volume_id": str(volume.id), "used": 0})
    assert (await volume_row(services, volume.id))["used_at"] is not None


async def test_a_failed_job_of_the_new_kind_can_be_retried(
    services: Services, example: Any, measuring: Any, runner: Runner
) -> None:
    volume = await a_volume(services)  # a row without data
    job = await measuring.request_measure(volume.id)
    await runner.process(job.message)
    failed = await row(services, job.id)
    jobs = JobService(services.database, services.queue, {**services.handlers, example.KIND: measuring})
    retry = await jobs.retry(job.id)

    assert failed.error is not None
    assert (failed.status, failed.error["code"]) == ("failed", "volume-missing")
    assert (retry.kind, retry.status, retry.retry_of) == (example.KIND, "queued", job.id)


async def test_a_worker_that_does_not_know_the_kind_leaves_the_job_in_the_queue(
    services: Services, measuring: Any
) -> None:
    job = await measuring.request_measure((await a_volume(services)).id)
    engine = services.engine(Worker(id=uuid4(), host="test", pid=os.getpid()), services.handlers)

    assert await engine.claim(job.message) is None
    assert (await row(services, job.id)).status == "queued"
