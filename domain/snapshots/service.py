"""The operations on snapshots; each consists of the five methods described in `domain.volumes.service`.

Rows are locked in one order everywhere: job, volume, snapshot.
"""

from collections.abc import Collection, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession
from uuid_utils.compat import uuid7

from domain.db.database import Database
from domain.db.pagination import Page, PageRequest
from domain.errors import Invalid, UnknownBackend
from domain.jobs.acceptance import ANONYMOUS, RequestOrigin, accepting
from domain.jobs.claimed import ClaimedJob
from domain.jobs.kinds import FailedJobs, SucceededJobs
from domain.jobs.model import Job, retry_columns
from domain.jobs.outcomes import Payload, Succeeded
from domain.jobs.store.jobs import JobRepository
from domain.jobs.transport.job_queue import JobQueue
from domain.snapshots import operations as ops
from domain.snapshots.model import Snapshot
from domain.snapshots.operations import snapshot_of, snapshot_releases, volume_releases
from domain.snapshots.repository import BulkSnapshotRepository, SnapshotFilter, SnapshotRepository
from domain.snapshots.retention import RetentionRule
from domain.snapshots.states import SnapshotState
from domain.storage.backends import Backends
from domain.storage.context import Grant
from domain.storage.driver import StorageDriver
from domain.volumes.model import Volume
from domain.volumes.operations import volume_of
from domain.volumes.repository import VolumeRepository, require_held
from domain.volumes.service import NewVolume
from domain.volumes.states import VolumeState


class SnapshotService:
    """The operations on snapshots, for the API and the workers."""

    def __init__(self, database: Database, queue: JobQueue, backends: Backends, *, max_attempts: int) -> None:
        self._database = database
        self._queue = queue
        self._backends = backends
        self._max_attempts = max_attempts

    # --- read --------------------------------------------------------------------------------------------

    async def get(self, snapshot_id: UUID) -> Snapshot:
        """Read one snapshot.

        Raises:
            SnapshotNotFound: no such snapshot.
        """
        async with self._database.transaction() as session:
            return await SnapshotRepository(session).get(snapshot_id)

    async def list_snapshots(self, filters: SnapshotFilter, request: PageRequest) -> Page[Snapshot]:
        """List snapshots, newest first.

        Raises:
            BadCursor: the cursor belongs to another list.
        """
        before = request.before
        async with self._database.transaction() as session:
            return request.page(await SnapshotRepository(session).page(filters, before=before, limit=request.limit))

    # --- take --------------------------------------------------------------------------------------------

    async def request_take(self, volume_id: UUID, name: str, *, origin: RequestOrigin = ANONYMOUS) -> Job:
        """Accept a new snapshot of a volume.

        Raises:
            VolumeNotFound: no such volume.
            VolumeBusy, VolumeUnusable: the volume is not available.
            NameTaken: another snapshot of the volume has the name.
        """
        async with accepting(self._database, origin) as accepted:
            session, job_id = accepted.session, uuid7()
            volume = await VolumeRepository(session).acquire(volume_id, VolumeState.SNAPSHOTTING, job_id)
            snapshot = await SnapshotRepository(session).add(ops.new_snapshot(volume, name, job_id))
            accepted.job = await self._add_take(session, volume, snapshot, created_by=origin.caller)
        return await self._dispatch(accepted.job)

    async def retry_take(self, session: AsyncSession, ended: Job) -> Job:
        """Retry a snapshot that could not be taken; it becomes a snapshot of the volume as it is now."""
        job_id = uuid7()
        volume = await VolumeRepository(session).acquire(volume_of(ended), VolumeState.SNAPSHOTTING, job_id)
        snapshot = await SnapshotRepository(session).acquire(snapshot_of(ended), SnapshotState.TAKING, job_id)
        snapshot.size = volume.size
        return await self._add_take(session, volume, snapshot, **retry_columns(ended))

    async def take(self, job: ClaimedJob, grant: Grant) -> Succeeded:
        """Take the snapshot on the volume's backend."""
        driver, volume_id, snapshot_id = self._storage(job)
        if job.retry_of is not None:
            # The job retried here may have left a snapshot behind, of the volume's data at that time.
            await driver.delete_snapshot(volume_id, snapshot_id, grant)
        size = await driver.take_snapshot(volume_id, snapshot_id, grant)
        return Succeeded(ops.result_of(job, size), copied=grant.copied)

    async def record_take(self, session: AsyncSession, succeeded: SucceededJobs) -> None:
        """Store the sizes of the snapshots; release volumes and snapshots."""
        await self._release_both(session, succeeded, resized_snapshots=True)

    async def abandon_take(self, session: AsyncSession, failed: FailedJobs) -> None:
        """Release the volumes unchanged, and the snapshots in ``error``, since they may exist: delete them."""
        await VolumeRepository(session).release(volume_releases(failed, resized=False), VolumeState.AVAILABLE)
        await SnapshotRepository(session).release(snapshot_releases(failed, resized=False), SnapshotState.ERROR)

    async def _add_take(self, session: AsyncSession, volume: Volume, snapshot: Snapshot, **columns: Any) -> Job:
        params = {"name": snapshot.name, "size": volume.size}
        columns |= {"job_id": volume.job_id, "volume_id": volume.id, "backend": volume.backend}
        job = self._job(snapshot, "snapshot.take", params, fence=snapshot.version, **columns)
        return await JobRepository(session).add(job)

    # --- restore -----------------------------------------------------------------------------------------

    async def request_restore(self, snapshot_id: UUID, *, origin: RequestOrigin = ANONYMOUS) -> Job:
        """Accept the restore of a volume from a snapshot. The volume keeps its current size.

        Raises:
            SnapshotNotFound: no such snapshot.
            VolumeBusy, VolumeUnusable: its volume is not available.
            SnapshotBusy, SnapshotUnusable: the snapshot is not ready.
        """
        async with accepting(self._database, origin) as accepted:
            accepted.job = await self._acquire_restore(accepted.session, snapshot_id, created_by=origin.caller)
        return await self._dispatch(accepted.job)

    async def retry_restore(self, session: AsyncSession, ended: Job) -> Job:
        """Retry the restore of a volume."""
        return await self._acquire_restore(session, snapshot_of(ended), **retry_columns(ended))

    async def restore(self, job: ClaimedJob, grant: Grant) -> Succeeded:
        """Restore the volume's data from the snapshot on its backend."""
        driver, volume_id, snapshot_id = self._storage(job)
        size = await driver.restore_snapshot(volume_id, snapshot_id, grant)
        return Succeeded(ops.result_of(job, size), copied=grant.copied)

    async def record_restore(self, session: AsyncSession, succeeded: SucceededJobs) -> None:
        """Store the sizes of the volumes; release volumes and snapshots."""
        await self._release_both(session, succeeded, resized_volumes=True)

    async def abandon_restore(self, session: AsyncSession, failed: FailedJobs) -> None:
        """Store the sizes that `seal_volume` found; release volumes and snapshots.

        Each volume has either its old data or the snapshot's, never a mixture.
        """
        await VolumeRepository(session).release(volume_releases(failed, resized=True), VolumeState.AVAILABLE)
        await SnapshotRepository(session).release(snapshot_releases(failed, resized=False), SnapshotState.READY)

    async def _acquire_restore(self, session: AsyncSession, snapshot_id: UUID, **columns: Any) -> Job:
        job_id, found = uuid7(), await SnapshotRepository(session).get(snapshot_id)
        volume = await VolumeRepository(session).acquire(found.volume_id, VolumeState.RESTORING, job_id)
        snapshot = await SnapshotRepository(session).acquire(snapshot_id, SnapshotState.RESTORING, job_id)
        columns |= {"job_id": job_id, "volume_id": volume.id, "backend": volume.backend}
        job = self._job(snapshot, "snapshot.restore", {"size": volume.size}, fence=volume.version, **columns)
        return await JobRepository(session).add(job)

    # --- delete ------------------------------------------------------------------------------------------

    async def request_delete(self, snapshot_id: UUID, *, origin: RequestOrigin = ANONYMOUS) -> Job:
        """Accept the deletion of a snapshot, which may be in the state ``error``. Its volume is not acquired.

        Raises:
            SnapshotNotFound: no such snapshot.
            SnapshotBusy: it is being taken, restored, cloned or deleted.
        """
        async with accepting(self._database, origin) as accepted:
            accepted.job = await self._acquire_delete(accepted.session, snapshot_id, created_by=origin.caller)
        return await self._dispatch(accepted.job)

    async def delete_expired(
        self,
        session: AsyncSession,
        volume_ids: Collection[UUID],
        schedule_id: UUID,
        keep: RetentionRule,
        *,
        caller: str | None,
    ) -> None:
        """Insert delete jobs for a schedule's own snapshots of these volumes that its retention rule does not keep.

        Called in the transaction that records the new snapshots, so that no old one is deleted before, and none twice.
        The jobs are left undispatched; maintenance dispatches them.
        """
        snapshots = BulkSnapshotRepository(session)
        expired = await snapshots.lock_expired(volume_ids, schedule_id, keep)
        if not expired:
            return
        backends = await VolumeRepository(session).backends_of({snapshot.volume_id for snapshot in expired})
        job_ids = {snapshot.id: uuid7() for snapshot in expired}
        await snapshots.acquire_each(job_ids, SnapshotState.DELETING)
        await JobRepository(session).add_undispatched(
            [
                self._delete_job(
                    snapshot,
                    backends[snapshot.volume_id],
                    job_ids[snapshot.id],
                    fence=snapshot.version + 1,  # the acquiring UPDATE incremented it; the loaded row shows the old one
                    created_by=caller,
                )
                for snapshot in expired
            ]
        )

    async def retry_delete(self, session: AsyncSession, ended: Job) -> Job:
        """Retry the deletion of a snapshot."""
        return await self._acquire_delete(session, snapshot_of(ended), **retry_columns(ended))

    async def delete(self, job: ClaimedJob, grant: Grant) -> Succeeded:
        """Delete the snapshot on its backend."""
        driver, volume_id, snapshot_id = self._storage(job)
        await driver.delete_snapshot(volume_id, snapshot_id, grant)
        return Succeeded(ops.result_of(job, None))

    async def record_delete(self, session: AsyncSession, succeeded: SucceededJobs) -> None:
        """Delete the rows of the snapshots."""
        removed = await SnapshotRepository(session).remove(snapshot_releases(succeeded, resized=False))
        require_held((snapshot_of(job) for job, _ in succeeded), removed)

    async def abandon_delete(self, session: AsyncSession, failed: FailedJobs) -> None:
        """Release the snapshots in ``error``, since they may still exist on the backend: delete them again."""
        await SnapshotRepository(session).release(snapshot_releases(failed, resized=False), SnapshotState.ERROR)

    async def _acquire_delete(self, session: AsyncSession, snapshot_id: UUID, **columns: Any) -> Job:
        job_id = uuid7()
        snapshot = await SnapshotRepository(session).acquire(snapshot_id, SnapshotState.DELETING, job_id)
        volume = await VolumeRepository(session).get(snapshot.volume_id)
        job = self._delete_job(snapshot, volume.backend, job_id, fence=snapshot.version, **columns)
        return await JobRepository(session).add(job)

    def _delete_job(self, snapshot: Snapshot, backend: str, job_id: UUID, *, fence: int, **columns: Any) -> Job:
        params = {"of_volume": str(snapshot.volume_id)}
        columns |= {"job_id": job_id, "backend": backend}
        return self._job(snapshot, "snapshot.delete", params, fence=fence, **columns)

    # --- clone -------------------------------------------------------------------------------------------

    async def request_clone(self, snapshot_id: UUID, new: NewVolume, *, origin: RequestOrigin = ANONYMOUS) -> Job:
        """Accept a new volume with a snapshot's data, on the same backend. Clones of a snapshot may run concurrently.

        Raises:
            SnapshotNotFound: no such snapshot.
            SnapshotBusy, SnapshotUnusable: the snapshot is neither ready nor being cloned.
            Invalid, UnknownBackend: the size is smaller than the snapshot's, or the backend is another one.
            NameTaken: another volume has the name.
        """
        async with accepting(self._database, origin) as accepted:
            session, job_id = accepted.session, uuid7()
            clone = await self._add_clone(session, snapshot_id, new, job_id)
            accepted.job = await self._acquire_clone(session, snapshot_id, clone, job_id, created_by=origin.caller)
        return await self._dispatch(accepted.job)

    async def retry_clone(self, session: AsyncSession, ended: Job) -> Job:
        """Retry a clone that ended in ``error``."""
        job_id = uuid7()
        clone = await VolumeRepository(session).acquire(volume_of(ended), VolumeState.CREATING, job_id)
        return await self._acquire_clone(session, snapshot_of(ended), clone, job_id, **retry_columns(ended))

    async def clone(self, job: ClaimedJob, grant: Grant) -> Succeeded:
        """Create the new volume on the snapshot's backend."""
        driver, source_id, snapshot_id = self._storage(job)
        size = await driver.clone_snapshot(source_id, snapshot_id, volume_of(job), job.params["size"], grant)
        return Succeeded(ops.result_of(job, size), copied=grant.copied)

    async def record_clone(self, session: AsyncSession, succeeded: SucceededJobs) -> None:
        """Store the sizes of the new volumes and release them; release each snapshot after its last clone."""
        made = await VolumeRepository(session).release(volume_releases(succeeded, resized=True), VolumeState.AVAILABLE)
        ops.require_both_held(succeeded, made, await self._release_cloned(session, succeeded))

    async def abandon_clone(self, session: AsyncSession, failed: FailedJobs) -> None:
        """Release the new volumes in ``error``, since they may exist: delete them, or retry the jobs."""
        await VolumeRepository(session).release(volume_releases(failed, resized=True), VolumeState.ERROR)
        await self._release_cloned(session, failed)

    async def _add_clone(self, session: AsyncSession, snapshot_id: UUID, new: NewVolume, job_id: UUID) -> Volume:
        snapshot = await SnapshotRepository(session).get(snapshot_id)
        source = await VolumeRepository(session).get(snapshot.volume_id)
        self._check_backend(new, source)
        clone = new.to_row(backend=source.backend, size=ops.clone_size(new, snapshot), job_id=job_id)
        return await VolumeRepository(session).add(clone)

    async def _acquire_clone(
        self, session: AsyncSession, snapshot_id: UUID, clone: Volume, job_id: UUID, **columns: Any
    ) -> Job:
        snapshot = await SnapshotRepository(session).acquire(snapshot_id, SnapshotState.CLONING, job_id)
        params = {"of_volume": str(snapshot.volume_id), "size": clone.size}
        columns |= {"job_id": job_id, "volume_id": clone.id, "backend": clone.backend}
        job = self._job(snapshot, "snapshot.clone", params, fence=clone.version, **columns)
        return await JobRepository(session).add(job)

    async def _release_cloned(self, session: AsyncSession, ended: SucceededJobs | FailedJobs) -> Sequence[UUID]:
        """Release the snapshots that have no live clone job left; return those that were in the state ``cloning``."""
        snapshot_ids = {snapshot_of(job) for job, _ in ended}
        return await SnapshotRepository(session).release_after_clones(snapshot_ids, ended=[job.id for job, _ in ended])

    def _check_backend(self, new: NewVolume, source: Volume) -> None:
        if new.backend in (None, source.backend):
            return
        if new.backend not in self._backends:
            raise UnknownBackend(f"There is no backend named {new.backend!r}.", field="backend")
        raise Invalid(f"A clone is made on its snapshot's backend, {source.backend!r}.", field="backend")

    # --- shared by the operations ------------------------------------------------------------------------

    async def seal_snapshot(self, job: ClaimedJob, grant: Grant) -> Payload:
        """Bar all earlier attempts to take or delete a snapshot, and report what they left on the backend."""
        driver, volume_id, snapshot_id = self._storage(job)
        return ops.sealed_result_of(job, await driver.seal_snapshot(volume_id, snapshot_id, grant))

    async def seal_volume(self, job: ClaimedJob, grant: Grant) -> Payload:
        """Bar all earlier attempts to restore or clone a volume, and report what they left on the backend."""
        driver, _, _ = self._storage(job)
        return ops.sealed_result_of(job, await driver.seal(volume_of(job), grant))

    async def _release_both(
        self,
        session: AsyncSession,
        succeeded: SucceededJobs,
        *,
        resized_volumes: bool = False,
        resized_snapshots: bool = False,
    ) -> None:
        volumes = volume_releases(succeeded, resized=resized_volumes)
        snapshots = snapshot_releases(succeeded, resized=resized_snapshots)
        available = await VolumeRepository(session).release(volumes, VolumeState.AVAILABLE)
        ops.require_both_held(
            succeeded, available, await SnapshotRepository(session).release(snapshots, SnapshotState.READY)
        )

    def _job(self, snapshot: Snapshot, kind: str, params: Payload, *, fence: int, **columns: Any) -> Job:
        return ops.job_for(snapshot, kind, params, fence=fence, max_attempts=self._max_attempts, **columns)

    async def _dispatch(self, job: Job) -> Job:
        await self._queue.dispatch([job.message])
        return job

    def _storage(self, job: ClaimedJob) -> tuple[StorageDriver, UUID, UUID]:
        """Return the driver of the job's backend, and the ids of the snapshot's volume and of the snapshot."""
        return self._backends.get(job.backend or ""), ops.source_of(job), snapshot_of(job)
