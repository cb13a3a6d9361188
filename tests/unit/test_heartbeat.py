"""The heart: it extends leases, stops what is not ours any more, and passes on what users want stopped."""

import asyncio
import os
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from shutil import rmtree
from types import MappingProxyType
from uuid import UUID

import pytest

from domain.errors import DatabaseUnavailable
from domain.jobs.claimed import ClaimedJob
from domain.jobs.engine import NOTHING_COPIED, Renewed
from domain.jobs.model import Job
from domain.jobs.store.leases import Progress
from domain.storage.context import Fence, Grant, StopReason
from tests.unit.worker_fakes import LEASE, FakeJobEngine, a_job, until
from worker.heartbeat import Heartbeat
from worker.liveness import LivenessFile
from worker.runner import Running

LONG_AGO = -1000.0
NOTHING_AT_WORK: Mapping[UUID, Running] = MappingProxyType({})


def at_work(*jobs: Job, deadline: float = 0.0) -> dict[UUID, Running]:
    return {job.id: Running(ClaimedJob.from_row(job), Grant(job.id, Fence(1, 0), deadline)) for job in jobs}


def a_heartbeat(engine: FakeJobEngine, running: dict[UUID, Running], *, lease: float = LEASE) -> Heartbeat:
    return Heartbeat(engine, running, lease=lease, stall=60)


async def test_a_beat_extends_every_grant_that_is_still_ours() -> None:
    jobs = [a_job() for _ in range(3)]
    running = at_work(*jobs)
    await a_heartbeat(FakeJobEngine(*jobs), running).beat()

    assert all(run.grant.lease.deadline > time.monotonic() + LEASE / 2 for run in running.values())
    assert all(run.grant.lease.stop_reason is None for run in running.values())


async def test_what_is_not_ours_any_more_is_stopped_and_not_extended() -> None:
    job = a_job()
    running = at_work(job)
    await a_heartbeat(FakeJobEngine(), running).beat()

    assert running[job.id].grant.lease.stop_reason is StopReason.LEASE_LOST
    assert running[job.id].grant.lease.deadline == 0.0


async def test_a_cancellation_is_passed_on_to_its_job_alone() -> None:
    wanted, unwanted = a_job(), a_job()
    engine, running = FakeJobEngine(wanted, unwanted), at_work(wanted, unwanted)
    engine.cancelled = {unwanted.id}
    await a_heartbeat(engine, running).beat()

    assert running[unwanted.id].grant.lease.stop_reason is StopReason.CANCELLED
    assert running[wanted.id].grant.lease.stop_reason is None


async def test_a_cancelled_job_keeps_its_lease_until_it_has_ended() -> None:
    job = a_job()
    engine, running = FakeJobEngine(job), at_work(job)
    engine.cancelled = {job.id}
    await a_heartbeat(engine, running).beat()

    assert running[job.id].grant.lease.deadline > time.monotonic()


async def test_a_stalled_job_is_not_renewed_and_runs_out_by_itself() -> None:
    stalled, lively = a_job(), a_job()
    running = at_work(stalled, lively)
    running[stalled.id].grant.lease.progressed_at = LONG_AGO
    await a_heartbeat(FakeJobEngine(stalled, lively), running).beat()

    assert running[stalled.id].grant.lease.deadline == 0.0
    assert running[lively.id].grant.lease.deadline > 0.0


async def test_a_beat_tells_how_far_those_are_that_copy_something() -> None:
    copying, other = a_job(), a_job()
    engine, running = FakeJobEngine(copying, other), at_work(copying, other)
    running[copying.id].grant.report(3, 10)
    await a_heartbeat(engine, running).beat()

    assert engine.progress == {copying.id: Progress(3, 10)}


async def test_a_job_that_is_settled_during_the_beat_does_no_harm() -> None:
    job = a_job()
    engine, running = Forgetful(job), at_work(job)
    engine.running = running
    await a_heartbeat(engine, running).beat()

    assert running == {}


async def test_without_postgresql_nothing_is_extended() -> None:
    job = a_job()
    engine, running = FakeJobEngine(job), at_work(job)
    engine.away = 1
    with pytest.raises(DatabaseUnavailable):
        await a_heartbeat(engine, running).beat()

    assert (running[job.id].grant.lease.deadline, running[job.id].grant.lease.stop_reason) == (0.0, None)


async def test_it_beats_from_its_first_beat_until_postgresql_is_found_away() -> None:
    engine = FakeJobEngine()
    heartbeat = a_heartbeat(engine, {})
    seen = [heartbeat.is_beating]
    await heartbeat.beat()
    seen.append(heartbeat.is_beating)
    heartbeat.note_outage()
    seen.append(heartbeat.is_beating)

    assert (seen, engine.falters) == ([False, True, False], 1)


async def test_a_beat_during_which_postgresql_was_found_away_does_not_count() -> None:
    engine = Interfering()
    engine.heartbeat = heartbeat = a_heartbeat(engine, {})
    await heartbeat.beat()

    assert not heartbeat.is_beating


async def test_a_beat_that_gets_no_answer_is_given_up_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.heartbeat.beat_patience", lambda lease: 0.01)
    engine = Mute()
    beating = asyncio.create_task(a_heartbeat(engine, {}, lease=0.01).run_forever())
    await until(lambda: engine.calls >= 3)
    beating.cancel()

    assert engine.falters >= 2


async def test_it_beats_on_through_an_outage_and_through_a_bug() -> None:
    engine = Faltering()
    heartbeat = a_heartbeat(engine, {}, lease=0.01)
    beating = asyncio.create_task(heartbeat.run_forever())
    await until(lambda: engine.calls >= 5)
    beating.cancel()

    assert engine.raised == 3
    assert heartbeat.is_beating


async def test_an_outage_stops_it() -> None:
    engine = FakeJobEngine()
    heartbeat = a_heartbeat(engine, {}, lease=60)
    await heartbeat.beat()
    engine.away = 1
    beating = asyncio.create_task(heartbeat.run_forever())
    await until(lambda: engine.away == 0)
    beating.cancel()

    assert not heartbeat.is_beating


async def test_a_beat_that_reached_postgresql_can_be_seen_from_outside(tmp_path: Path) -> None:
    heartbeat, file = a_visible_heartbeat(tmp_path, FakeJobEngine())
    grow_old(file)
    await heartbeat.beat()

    assert age(file) < 60


async def test_a_beat_that_did_not_cannot_be_seen(tmp_path: Path) -> None:
    engine = FakeJobEngine()
    heartbeat, file = a_visible_heartbeat(tmp_path, engine)
    grow_old(file)
    engine.away = 1
    with pytest.raises(DatabaseUnavailable):
        await heartbeat.beat()

    assert age(file) > 60


async def test_a_heart_that_nobody_can_see_beats_all_the_same(tmp_path: Path) -> None:
    job = a_job()
    heartbeat, file = a_visible_heartbeat(tmp_path / "folder", FakeJobEngine(job), running := at_work(job))
    rmtree(file.parent)
    await heartbeat.beat()

    assert heartbeat.is_beating
    assert running[job.id].grant.lease.deadline > time.monotonic()


def a_visible_heartbeat(
    folder: Path, engine: FakeJobEngine, running: Mapping[UUID, Running] = NOTHING_AT_WORK
) -> tuple[Heartbeat, Path]:
    folder.mkdir(exist_ok=True)
    file = folder / "beat"
    return Heartbeat(engine, running, lease=LEASE, stall=60, pulse=LivenessFile.open(file)), file


def grow_old(file: Path) -> None:
    os.utime(file, (0, 0))


def age(file: Path) -> float:
    return time.time() - file.stat().st_mtime


class Interfering(FakeJobEngine):
    """While it renews, somebody else finds PostgreSQL away."""

    heartbeat: Heartbeat

    async def renew(self, job_ids: Collection[UUID], progress: Mapping[UUID, Progress] = NOTHING_COPIED) -> Renewed:
        self.heartbeat.note_outage()
        return await super().renew(job_ids, progress)


class Mute(FakeJobEngine):
    """Waits for an answer that never comes."""

    calls = 0

    async def renew(self, job_ids: Collection[UUID], progress: Mapping[UUID, Progress] = NOTHING_COPIED) -> Renewed:
        self.calls += 1
        await asyncio.Event().wait()
        raise AssertionError


class Forgetful(FakeJobEngine):
    """While it renews, the job ends."""

    running: dict[UUID, Running]

    async def renew(self, job_ids: Collection[UUID], progress: Mapping[UUID, Progress] = NOTHING_COPIED) -> Renewed:
        answer = await super().renew(list(job_ids), progress)
        self.running.clear()
        return answer


class Faltering(FakeJobEngine):
    """Fails three times: without PostgreSQL, with a bug, and without PostgreSQL again."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = self.raised = 0
        self._errors = [DatabaseUnavailable(), ValueError("a bug"), DatabaseUnavailable()]

    async def renew(self, job_ids: Collection[UUID], progress: Mapping[UUID, Progress] = NOTHING_COPIED) -> Renewed:
        self.calls += 1
        if self._errors:
            self.raised += 1
            raise self._errors.pop()
        return await super().renew(job_ids, progress)
