"""Builders and readers of volumes with data, and of their snapshots and jobs."""

import asyncio
import math
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from uuid_utils.compat import uuid7

from domain.db.base import DEFAULT_PROJECT
from domain.db.pagination import PageRequest
from domain.errors import DatabaseUnavailable
from domain.jobs.attempt import ClaimedJob, Failed, Outcome, Payload, Succeeded
from domain.jobs.engine import JobEngine
from domain.jobs.model import Job
from domain.operations import SnapshotState
from domain.services import Services
from domain.snapshots.model import Snapshot
from domain.snapshots.repository import SnapshotFilter
from domain.storage.context import Fence, Grant
from domain.volumes.model import Volume
from domain.volumes.service import NewVolume
from tests.integration.job_builders import MIB, a_volume, an_engine, ended, row, sql

#: The driver's method by kind of job.
OPERATIONS = {
    "snapshot.take": "take_snapshot",
    "snapshot.restore": "restore_snapshot",
    "snapshot.delete": "delete_snapshot",
    "snapshot.clone": "clone_snapshot",
    "volume.clone": "clone_snapshot",
}


async def a_stored_volume(
    services: Services, *, content: bytes = b"", size: int = MIB, backend: str = "memory"
) -> Volume:
    """Create an available volume, as a row and on its backend, without any job."""
    volume = await a_volume(services, size=size, backend=backend)
    await services.backends.get(backend).create(volume.id, size, _past())
    if content:
        write(services, volume.id, content, backend=backend)
    return volume


async def a_snapshot(services: Services, volume: Volume, name: str = "kept") -> Snapshot:
    """Create a ready snapshot, as a row and on its volume's backend, without any job."""
    snapshot = Snapshot(
        id=uuid7(),
        volume_id=volume.id,
        name=name,
        state=SnapshotState.READY,
        size=volume.size,
        version=1,
        project_id=DEFAULT_PROJECT,
    )
    async with services.database.transaction() as session:
        session.add(snapshot)
    await services.backends.get(volume.backend).take_snapshot(volume.id, snapshot.id, _past())
    return snapshot


async def requested(services: Services, kind: str, volume: Volume, snapshot: Snapshot | None = None) -> Job:
    """Request an operation on a snapshot, which is created first if it is needed and not passed, or on a volume."""
    if kind == "volume.clone":
        return await services.snapshots.request_clone_of_volume(volume.id, NewVolume(uuid4().hex))
    if kind == "snapshot.take":
        return await services.snapshots.request_take(volume.id, "taken")
    snapshot = snapshot or await a_snapshot(services, volume)
    if kind == "snapshot.restore":
        return await services.snapshots.request_restore(snapshot.id)
    if kind == "snapshot.delete":
        return await services.snapshots.request_delete(snapshot.id)
    return await services.snapshots.request_clone(snapshot.id, NewVolume(uuid4().hex))


async def carried_out(services: Services, job: Job) -> Job:
    """Claim, perform and settle a queued job, as a worker does."""
    engine, own = await claimed(services, job)
    await settled(engine, own, await attempted(services, own))
    return await row(services, job.id)


async def attempted(services: Services, own: ClaimedJob) -> Outcome:
    """Perform the storage work of a job without settling it."""
    return await services.handlers[own.kind].perform(own, Grant(own.id, Fence(*own.fence), math.inf))


async def given_up(services: Services, job: Job, found: Payload | None = None) -> Job:
    """Claim a queued job and settle it as failed."""
    engine, own = await claimed(services, job)
    await settled(engine, own, Failed({"code": "storage-full", "detail": ""}, found))
    return await row(services, job.id)


async def settled(engine: JobEngine, own: ClaimedJob, outcome: Outcome) -> bool:
    """Settle as the runner does, which tries again while a row is locked."""
    async with asyncio.timeout(60):
        while True:
            with suppress(DatabaseUnavailable):
                return await engine.settle(own, outcome)


async def claimed(services: Services, job: Job) -> tuple[JobEngine, ClaimedJob]:
    """Claim a job as a new worker."""
    engine = an_engine(services)
    claim = await engine.claim((await row(services, job.id)).message)
    assert claim is not None
    return engine, claim.job


async def done(services: Services, job: Job) -> Job:
    """Wait until the job has ended, require that it succeeded, and return it."""
    job = await ended(services, job.id)
    assert job.status == "succeeded", job.error
    return job


def copied(own: ClaimedJob, size: int | None) -> Succeeded:
    """The outcome of an attempt that copied ``size`` bytes."""
    return Succeeded({"snapshot_id": str(own.snapshot_id), "volume_id": str(own.volume_id)}, copied=size)


def path(services: Services, volume_id: UUID | None, backend: str = "disk") -> Path:
    assert volume_id is not None
    return Path(str(services.backends.get(backend).path(volume_id)))


def write(services: Services, volume_id: UUID | None, content: bytes, *, backend: str = "disk") -> None:
    """Write to the beginning of the volume's file, as a user does."""
    with path(services, volume_id, backend).open("r+b") as file:
        file.write(content)


def read(services: Services, volume_id: UUID | None, backend: str = "disk") -> bytes:
    return path(services, volume_id, backend).read_bytes()


async def snapshot_row(services: Services, snapshot_id: UUID | None) -> dict[str, Any]:
    (found,) = await sql(services, "SELECT * FROM snapshots WHERE id = :id", id=snapshot_id)
    return dict(found._mapping)


async def states(services: Services, job: Job) -> tuple[str | None, str | None]:
    """The states of a job's volume and snapshot; None for a row that does not exist."""
    volume = await sql(services, "SELECT state, job_id FROM volumes WHERE id = :id", id=job.volume_id)
    snapshot = await sql(services, "SELECT state, job_id FROM snapshots WHERE id = :id", id=job.snapshot_id)
    for found in volume + snapshot:
        assert (found.job_id is not None) == found.state.endswith("ing")
    return (volume[0].state if volume else None, snapshot[0].state if snapshot else None)


async def names(services: Services, **filters: Any) -> list[str]:
    page = await services.snapshots.list_snapshots(
        SnapshotFilter(**filters), PageRequest("snapshots"), project_id=DEFAULT_PROJECT
    )
    return [snapshot.name for snapshot in page.items]


async def all_rows(services: Services) -> list[Any]:
    """All rows of jobs, volumes and snapshots, to compare before and after."""
    tables = ("jobs", "volumes", "snapshots")
    return [await sql(services, f"SELECT * FROM {table} ORDER BY id") for table in tables]


def _past() -> Grant:
    """A grant with the lowest fence, which that of any real job supersedes."""
    return Grant(uuid4(), Fence(0, 0), math.inf)
