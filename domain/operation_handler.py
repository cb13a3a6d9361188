"""Performs and records the jobs of every operation on volumes and snapshots, as the table of operations says.

A job holds its volume and snapshot from the transaction that accepts it to the transaction that settles it. Rows are
locked in one order everywhere: project, job, volume, snapshot.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Final
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession
from uuid_utils.compat import uuid7

from domain.jobs.attempt import ClaimedJob, Payload, Succeeded
from domain.jobs.kinds import FailedJobs, JobHandler, RefusedJobs, SucceededJobs
from domain.jobs.model import Job, retry_columns
from domain.jobs.store.jobs import JobRepository
from domain.operations import Operation, Published, SnapshotState, VolumeState, job_for
from domain.projects.quota import Room
from domain.snapshots.repository import SnapshotRelease, SnapshotRepository, refuse_if_it_has_snapshots
from domain.storage.backends import Backends
from domain.storage.context import Grant
from domain.storage.driver import StorageDriver
from domain.storage_work import GROW_FILESYSTEM, snapshot_of, source_of, volume_of
from domain.volumes.attachments.freezing import Freezer
from domain.volumes.attachments.repository import attached_ones
from domain.volumes.filesystems.growth import grown_offline, growth_params
from domain.volumes.filesystems.repository import record_growths
from domain.volumes.repository import Release, VolumeRepository

_OVERTAKEN: Final[Payload] = {
    "code": "fence-refused",
    "detail": "The storage has seen a later operation on the volume, which the database has lost. Look at the data, and"
    " request this operation again if it is still wanted.",
}


class OperationHandler(JobHandler):
    """The handler of one operation."""

    def __init__(
        self, operation: Operation, backends: Backends, *, max_attempts: int, freezer: Freezer | None = None
    ) -> None:
        self._operation = operation
        self._backends = backends
        self._max_attempts = max_attempts
        self._freezer = freezer

    async def perform(self, job: ClaimedJob, grant: Grant) -> Succeeded:
        """Do the storage work."""
        if self._operation.storage_work is None:
            raise RuntimeError(f"{job.kind} is the work of a node")
        driver = self._driver(job)
        if self._freezer is not None:
            driver = self._freezer.while_taking(driver, attached=job.params.get("attached", False))
        found = await self._operation.storage_work(driver, job, grant)
        if "size" in found and found["size"] is None:  # of a snapshot taken or restored where no sizes are stored
            found = {**found, "size": job.params["size"]}
        return Succeeded(_result(job, found), copied=grant.copied)

    async def seal(self, job: ClaimedJob, grant: Grant) -> Payload | None:
        """Raise the fence of what the operation publishes, and return its size; no size: nothing is there."""
        driver = self._driver(job)
        if self._operation.publishes is Published.VOLUME:
            size = await driver.seal(volume_of(job), grant)
        else:
            size = await driver.seal_snapshot(source_of(job), snapshot_of(job), grant)
        if self._operation.clean_up is not None:
            # As `seal` does, it ignores that the attempt was stopped.
            await self._operation.clean_up(driver, job, Grant(job.id, grant.fence, math.inf))
        return _result(job, {} if size is None else {"size": size})

    async def record(self, session: AsyncSession, succeeded: SucceededJobs) -> None:
        """Release volumes and snapshots, with the size of what was published, or delete their rows.

        Raises:
            RuntimeError: a job no longer held its volume or snapshot.
        """
        volume, snapshot, source = self._operation.volume, self._operation.snapshot, self._operation.source
        if source is not None:
            changed = await self._release_sources(session, succeeded, source.success)
            _require_held((source_of(job) for job, _ in succeeded), changed)
        if volume is not None:
            changed = await self._release_or_remove_volumes(session, succeeded, volume.success)
            _require_held((volume_of(job) for job, _ in succeeded), changed)
            await record_growths(session, {volume_of(job): found for job, found in succeeded})
        if snapshot is not None:
            changed = await self._release_or_remove_snapshots(session, succeeded, snapshot.success)
            _require_held((snapshot_of(job) for job, _ in succeeded), changed)

    async def abandon(self, session: AsyncSession, failed: FailedJobs) -> None:
        """Release volumes, with the size that `seal` has found if the operation publishes them, and snapshots.

        A row that another job holds is left alone: that job releases it.
        """
        if self._operation.source is not None:
            await self._release_sources(session, failed, self._operation.source.failure)
        if self._operation.volume is not None:
            await self._release_or_remove_volumes(session, failed, self._operation.volume.failure)
        if self._operation.snapshot is not None:
            unsized = [(job, None) for job, _ in failed]  # a snapshot that is unusable keeps its size
            await self._release_or_remove_snapshots(session, unsized, self._operation.snapshot.failure)

    async def raise_fences(self, session: AsyncSession, refused: RefusedJobs) -> None:
        """Raise the versions of what the jobs publish.

        A restore that a later operation has followed was done: repeating it would discard what was written since.
        """
        volumes, snapshots = VolumeRepository(session), SnapshotRepository(session)
        for job, stored in sorted(refused, key=lambda one: one[0].volume_id or one[0].id):
            if self._operation.publishes is Published.VOLUME:
                await volumes.raise_versions([volume_of(job)], job.id, above=stored.version)
            else:
                await snapshots.raise_version(snapshot_of(job), job.id, above=stored.version)
            if self._operation.overwrites and stored.version > job.fence.version:
                await JobRepository(session).cancel_next_attempt(job.id, _OVERTAKEN)

    async def retry(self, session: AsyncSession, ended: Job, room: Room) -> Job:
        """Acquire the volume and snapshot of an ended job again, for a new job."""
        operation, project_id, job_id = self._operation, ended.project_id, uuid7()
        volumes, snapshots = VolumeRepository(session), SnapshotRepository(session)
        volume = snapshot = source = None
        if operation.snapshot is not None:
            await snapshots.get(snapshot_of(ended), project_id)  # if it is gone, no later retry will succeed
        if operation.source is not None:
            source = await volumes.acquire(source_of(ended), project_id, operation.source.busy, job_id)
        if operation.volume is not None:
            volume = await volumes.acquire(volume_of(ended), project_id, operation.volume.busy, job_id)
            if operation.volume.success is None:
                await refuse_if_it_has_snapshots(session, volume.id)
            if source is not None:
                room.take(bytes=volume.follow(source))
        params = operation.retry_params(ended.params, None if volume is None else volume.size)
        if volume is not None and "to_size" in params:
            grown = await grown_offline(session, [volume])
            params = {name: value for name, value in params.items() if name != GROW_FILESYSTEM}
            params |= growth_params(grown.get(volume.id))
            volume.growing_to = params["to_size"]
            room.take(bytes=params["to_size"] - volume.size)
        if operation.snapshot is not None:
            snapshot = await snapshots.acquire(snapshot_of(ended), project_id, operation.snapshot.busy, job_id)
            if operation.publishes is Published.SNAPSHOT:
                snapshot.size = params.get("size", snapshot.size)
        if "attached" in params:
            params = {**params, "attached": bool(await attached_ones(session, [source_of(ended)]))}
        columns = {"backend": ended.backend, **retry_columns(ended)}
        job = job_for(operation.kind, params, volume, snapshot, max_attempts=self._max_attempts, **columns)
        return await JobRepository(session).add(job)

    async def _release_or_remove_volumes(
        self, session: AsyncSession, ended: SucceededJobs | FailedJobs, state: VolumeState | None
    ) -> Sequence[UUID]:
        published = self._operation.publishes is Published.VOLUME
        releases = [Release(volume_of(job), job.id, _size(found) if published else None) for job, found in ended]
        volumes = VolumeRepository(session)
        return await (volumes.remove(releases) if state is None else volumes.release(releases, state))

    async def _release_sources(
        self, session: AsyncSession, ended: SucceededJobs | FailedJobs, state: VolumeState | None
    ) -> Sequence[UUID]:
        """Release the volumes that were cloned; lock the clones, too, so that all are locked in the order of ids."""
        if state is None:
            raise RuntimeError(f"{self._operation.kind} would remove its source")
        volumes = VolumeRepository(session)
        await volumes.lock_many([id_ for job, _ in ended for id_ in (source_of(job), volume_of(job))])
        return await volumes.release([Release(source_of(job), job.id, None) for job, _ in ended], state)

    async def _release_or_remove_snapshots(
        self, session: AsyncSession, ended: SucceededJobs | FailedJobs, state: SnapshotState | None
    ) -> Sequence[UUID]:
        published = self._operation.publishes is Published.SNAPSHOT
        releases = [
            SnapshotRelease(snapshot_of(job), job.id, *((_size(found), _consistency(found)) if published else (None,)))
            for job, found in ended
        ]
        snapshots = SnapshotRepository(session)
        if self._operation.snapshot is not None and self._operation.snapshot.shared:
            return await snapshots.release_after_clones(
                {release.snapshot_id for release in releases}, ended=[release.job_id for release in releases]
            )
        return await (snapshots.remove(releases) if state is None else snapshots.release(releases, state))

    def _driver(self, job: ClaimedJob) -> StorageDriver:
        return self._backends.get(job.backend or "")


def _result(job: ClaimedJob, found: Payload) -> Payload:
    """Build the result that a job shows, and from which its effect is recorded."""
    ids = {"volume_id": str(job.volume_id or source_of(job))}
    if job.snapshot_id is not None:
        ids["snapshot_id"] = str(job.snapshot_id)
    return ids | found


def _size(found: Payload | None) -> int | None:
    return (found or {}).get("size")


def _consistency(found: Payload | None) -> str | None:
    return (found or {}).get("consistency")


def _require_held(expected: Iterable[UUID], changed: Iterable[UUID]) -> None:
    """Require that every row expected to be held by its job was changed; otherwise the transaction must roll back.

    Raises:
        RuntimeError: a row is held by another job, or by none.
    """
    if missing := set(expected) - set(changed):
        raise RuntimeError(f"not held by the jobs that end: {sorted(map(str, missing))}")
