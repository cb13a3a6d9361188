"""The heartbeat renews leases, stops jobs that were lost, and passes cancellations on to running jobs."""

import asyncio
import os
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from shutil import rmtree
from types import MappingProxyType
from typing import cast
from uuid import UUID

import pytest

from domain.errors import DatabaseUnavailable
from domain.jobs.attempt import ClaimedJob
from domain.jobs.engine import NO_PROGRESS, Renewed
from domain.jobs.model import Job
from domain.jobs.store.leases import Progress, SlowCall
from domain.storage.context import Fence, Grant, StopReason
from tests.unit.worker_fakes import LEASE, STALL, FakeJobEngine, a_job, until
from worker.heartbeat import Heartbeat, LivenessFile
from worker.runner import Execution

NOTHING_RUNNING: Mapping[UUID, Execution] = MappingProxyType({})


def running_jobs(*jobs: Job, deadline: float = 0.0) -> dict[UUID, Execution]:
    return {job.id: Execution(ClaimedJob.from_row(job), Grant(job.id, Fence(1, 0), deadline)) for job in jobs}


def a_heartbeat(engine: FakeJobEngine, running: dict[UUID, Execution], *, lease: float = LEASE) -> Heartbeat:
    return Heartbeat(engine, running, lease=lease, stall=STALL)


async def test_beat_extends_every_grant_that_is_still_held() -> None:
    jobs = [a_job() for _ in range(3)]
    running = running_jobs(*jobs)
    await a_heartbeat(FakeJobEngine(*jobs), running).beat()

    assert all(run.grant.state.deadline > time.monotonic() + LEASE / 2 for run in running.values())
    assert all(run.grant.state.stop_reason is None for run in running.values())


async def test_beat_stops_a_lost_job_and_does_not_extend_its_grant() -> None:
    job = a_job()
    running = running_jobs(job)
    await a_heartbeat(FakeJobEngine(), running).beat()

    assert running[job.id].grant.state.stop_reason is StopReason.LEASE_LOST
    assert running[job.id].grant.state.deadline == 0.0


async def test_beat_stops_only_the_cancelled_job() -> None:
    other, cancelled = a_job(), a_job()
    engine, running = FakeJobEngine(other, cancelled), running_jobs(other, cancelled)
    engine.cancelled = {cancelled.id}
    await a_heartbeat(engine, running).beat()

    assert running[cancelled.id].grant.state.stop_reason is StopReason.CANCELLED
    assert running[other.id].grant.state.stop_reason is None


async def test_cancelled_job_keeps_its_lease_until_it_ends() -> None:
    job = a_job()
    engine, running = FakeJobEngine(job), running_jobs(job)
    engine.cancelled = {job.id}
    await a_heartbeat(engine, running).beat()

    assert running[job.id].grant.state.deadline > time.monotonic()


async def test_stalled_job_is_not_renewed() -> None:
    stalled, active = a_job(), a_job()
    running = running_jobs(stalled, active)
    running[stalled.id].grant.state.progressed_at = -1000.0
    await a_heartbeat(FakeJobEngine(stalled, active), running).beat()

    assert running[stalled.id].grant.state.deadline == 0.0
    assert running[active.id].grant.state.deadline > 0.0


@pytest.mark.parametrize(("seconds", "is_renewed"), [(500, True), (700, False)])
async def test_job_in_a_blocking_call_is_renewed_until_the_call_has_taken_too_long(
    seconds: float, *, is_renewed: bool
) -> None:
    job = a_job()
    engine, running = FakeJobEngine(job), running_jobs(job)
    grant = running[job.id].grant
    with grant.blocking_call("reflink"):
        for call in grant.state.calls:
            call.started_at = grant.state.progressed_at = time.monotonic() - seconds
        await a_heartbeat(engine, running).beat()

    assert (grant.state.deadline > 0.0) is is_renewed
    if is_renewed:
        assert engine.progress[job.id] == (
            None,
            None,
            SlowCall("reflink", cast("float", pytest.approx(seconds, abs=30)), 600),
        )


async def test_beat_stores_the_progress_of_copying_jobs() -> None:
    copying, other = a_job(), a_job()
    engine, running = FakeJobEngine(copying, other), running_jobs(copying, other)
    running[copying.id].grant.report(3, 10)
    await a_heartbeat(engine, running).beat()

    assert engine.progress == {copying.id: Progress(3, 10)}


async def test_beat_ignores_a_job_that_is_settled_meanwhile() -> None:
    job = a_job()
    engine, running = SettlingEngine(job), running_jobs(job)
    engine.running = running
    await a_heartbeat(engine, running).beat()

    assert running == {}


async def test_nothing_is_extended_without_postgresql() -> None:
    job = a_job()
    engine, running = FakeJobEngine(job), running_jobs(job)
    engine.failing_calls = 1
    with pytest.raises(DatabaseUnavailable):
        await a_heartbeat(engine, running).beat()

    assert (running[job.id].grant.state.deadline, running[job.id].grant.state.stop_reason) == (0.0, None)


async def test_is_beating_from_the_first_beat_until_an_outage() -> None:
    engine = FakeJobEngine()
    heartbeat = a_heartbeat(engine, {})
    states = [heartbeat.is_beating]
    await heartbeat.beat()
    states.append(heartbeat.is_beating)
    heartbeat.note_outage()
    states.append(heartbeat.is_beating)

    assert (states, engine.outages_noted) == ([False, True, False], 1)


async def test_beat_during_an_outage_does_not_count() -> None:
    engine = OutageNotingEngine()
    engine.heartbeat = heartbeat = a_heartbeat(engine, {})
    await heartbeat.beat()

    assert not heartbeat.is_beating


async def test_beat_without_a_reply_times_out_and_is_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.heartbeat.heartbeat_timeout", lambda *_: 0.01)
    engine = UnresponsiveEngine()
    beating_task = asyncio.create_task(a_heartbeat(engine, {}, lease=0.01).run_forever())
    await until(lambda: engine.calls >= 3)
    beating_task.cancel()

    assert engine.outages_noted >= 2


async def test_heartbeat_goes_on_after_outages_and_bugs() -> None:
    engine = ThreeFailuresEngine()
    heartbeat = a_heartbeat(engine, {}, lease=0.01)
    beating_task = asyncio.create_task(heartbeat.run_forever())
    await until(lambda: engine.calls >= 5)
    beating_task.cancel()

    assert engine.raised == 3
    assert heartbeat.is_beating


async def test_is_not_beating_after_an_outage() -> None:
    engine = FakeJobEngine()
    heartbeat = a_heartbeat(engine, {}, lease=60)
    await heartbeat.beat()
    engine.failing_calls = 1
    beating_task = asyncio.create_task(heartbeat.run_forever())
    await until(lambda: engine.failing_calls == 0)
    beating_task.cancel()

    assert not heartbeat.is_beating


async def test_beat_touches_the_liveness_file(tmp_path: Path) -> None:
    heartbeat, file = a_heartbeat_with_file(tmp_path, FakeJobEngine())
    grow_old(file)
    await heartbeat.beat()

    assert age(file) < 60


async def test_failed_beat_does_not_touch_the_liveness_file(tmp_path: Path) -> None:
    engine = FakeJobEngine()
    heartbeat, file = a_heartbeat_with_file(tmp_path, engine)
    grow_old(file)
    engine.failing_calls = 1
    with pytest.raises(DatabaseUnavailable):
        await heartbeat.beat()

    assert age(file) > 60


async def test_heartbeat_goes_on_if_the_liveness_file_cannot_be_written(tmp_path: Path) -> None:
    job = a_job()
    heartbeat, file = a_heartbeat_with_file(tmp_path / "folder", FakeJobEngine(job), running := running_jobs(job))
    rmtree(file.parent)
    await heartbeat.beat()

    assert heartbeat.is_beating
    assert running[job.id].grant.state.deadline > time.monotonic()


def a_heartbeat_with_file(
    folder: Path, engine: FakeJobEngine, running: Mapping[UUID, Execution] = NOTHING_RUNNING
) -> tuple[Heartbeat, Path]:
    folder.mkdir(exist_ok=True)
    file = folder / "beat"
    return Heartbeat(engine, running, lease=LEASE, stall=STALL, liveness_file=LivenessFile.open(file)), file


def grow_old(file: Path) -> None:
    os.utime(file, (0, 0))


def age(file: Path) -> float:
    return time.time() - file.stat().st_mtime


class OutageNotingEngine(FakeJobEngine):
    """Another task notes an outage while it renews leases."""

    heartbeat: Heartbeat

    async def renew(self, job_ids: Collection[UUID], progress: Mapping[UUID, Progress] = NO_PROGRESS) -> Renewed:
        self.heartbeat.note_outage()
        return await super().renew(job_ids, progress)


class UnresponsiveEngine(FakeJobEngine):
    """Never returns from renewing leases."""

    calls = 0

    async def renew(self, job_ids: Collection[UUID], progress: Mapping[UUID, Progress] = NO_PROGRESS) -> Renewed:
        self.calls += 1
        await asyncio.Event().wait()
        raise AssertionError


class SettlingEngine(FakeJobEngine):
    """All jobs are settled while it renews leases."""

    running: dict[UUID, Execution]

    async def renew(self, job_ids: Collection[UUID], progress: Mapping[UUID, Progress] = NO_PROGRESS) -> Renewed:
        renewed = await super().renew(list(job_ids), progress)
        self.running.clear()
        return renewed


class ThreeFailuresEngine(FakeJobEngine):
    """Fails three times: an outage, a bug, and another outage."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = self.raised = 0
        self._errors = [DatabaseUnavailable(), ValueError("a bug"), DatabaseUnavailable()]

    async def renew(self, job_ids: Collection[UUID], progress: Mapping[UUID, Progress] = NO_PROGRESS) -> Renewed:
        self.calls += 1
        if self._errors:
            self.raised += 1
            raise self._errors.pop()
        return await super().renew(job_ids, progress)
