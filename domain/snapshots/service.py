"""The use cases of snapshots, each as adjacent methods, as in `domain.volumes.service`.

Rows are locked in one order everywhere: job, volume, snapshot.
"""

from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession
from uuid_utils.compat import uuid7

from domain.db.pagination import Page, PageRequest
from domain.jobs.claimed import ClaimedJob
from domain.jobs.idempotency import ANONYMOUS, RequestOrigin, idempotent_transaction
from domain.jobs.kinds import FailedJobs, SucceededJobs
from domain.jobs.model import Job, retry_columns
from domain.jobs.outcomes import Succeeded
from domain.jobs.store.jobs import JobRepository
from domain.snapshots.clones import Clones
from domain.snapshots.expiry import Expiry
from domain.snapshots.model import Snapshot
from domain.snapshots.operations import require_both, result, snapshot_of, snapshots, volume_of, volumes
from domain.snapshots.repository import SnapshotFilter, SnapshotRepository
from domain.snapshots.states import SnapshotState
from domain.storage.context import Grant
from domain.volumes.model import Volume
from domain.volumes.repository import VolumeRepository, require_held
from domain.volumes.states import VolumeState


class SnapshotService(Clones, Expiry):
    """Snapshots, for HTTP and for the workers."""

    # --- reading -----------------------------------------------------------------------------------------

    async def get(self, snapshot_id: UUID) -> Snapshot:
        """Read one snapshot.

        Raises:
            SnapshotNotFound: there is none.
        """
        async with self._database.transaction() as session:
            return await SnapshotRepository(session).get(snapshot_id)

    async def list_snapshots(self, filters: SnapshotFilter, request: PageRequest) -> Page[Snapshot]:
        """List snapshots, newest first.

        Raises:
            BadCursor: the cursor is not from this list.
        """
        before = request.before
        async with self._database.transaction() as session:
            return request.page(await SnapshotRepository(session).page(filters, before=before, limit=request.limit))

    # --- take --------------------------------------------------------------------------------------------

    async def request_take(self, volume_id: UUID, name: str, *, origin: RequestOrigin = ANONYMOUS) -> Job:
        """Accept a new snapshot of a volume.

        Raises:
            VolumeNotFound: there is no such volume.
            VolumeBusy, VolumeUnusable: it is not available.
            NameTaken: another snapshot of the volume has the name.
        """
        async with idempotent_transaction(self._database, origin) as acceptance:
            session, job_id = acceptance.session, uuid7()
            volume = await VolumeRepository(session).acquire(volume_id, VolumeState.SNAPSHOTTING, job_id)
            snapshot = await SnapshotRepository(session).add(_new_snapshot(volume, name, job_id))
            job = self._take_job(volume, snapshot, job_id, created_by=origin.caller)
            acceptance.job = await JobRepository(session).add(job)
        return await self._dispatch(job)

    async def retry_take(self, session: AsyncSession, ended: Job) -> Job:
        """Take the snapshot now that could not be taken then."""
        volume_id, snapshot_id, job_id = volume_of(ended), snapshot_of(ended), uuid7()
        volume = await VolumeRepository(session).acquire(volume_id, VolumeState.SNAPSHOTTING, job_id)
        snapshot = await SnapshotRepository(session).acquire(snapshot_id, SnapshotState.TAKING, job_id)
        snapshot.size = volume.size
        return await JobRepository(session).add(self._take_job(volume, snapshot, job_id, **retry_columns(ended)))

    async def take(self, job: ClaimedJob, grant: Grant) -> Succeeded:
        """Keep the volume's bytes on its backend."""
        driver, volume_id, snapshot_id = self._storage(job)
        if job.retry_of is not None:
            # An attempt that was given up may have left a snapshot behind, of what the volume was at that time.
            await driver.delete_snapshot(volume_id, snapshot_id, grant)
        size = await driver.take_snapshot(volume_id, snapshot_id, grant)
        return Succeeded(result(job, size), copied=grant.copied)

    async def record_take(self, session: AsyncSession, done: SucceededJobs) -> None:
        """The snapshots are there, with the sizes that they got; the volumes are as before."""
        rested = await VolumeRepository(session).release(volumes(done, resized=False), VolumeState.AVAILABLE)
        ready = await SnapshotRepository(session).release(snapshots(done, resized=True), SnapshotState.READY)
        require_both(done, rested, ready)

    async def abandon_take(self, session: AsyncSession, given_up: FailedJobs) -> None:
        """The volumes are as before. The snapshots may or may not be there: they can be deleted."""
        await VolumeRepository(session).release(volumes(given_up, resized=False), VolumeState.AVAILABLE)
        await SnapshotRepository(session).release(snapshots(given_up, resized=False), SnapshotState.ERROR)

    # --- restore -----------------------------------------------------------------------------------------

    async def request_restore(self, snapshot_id: UUID, *, origin: RequestOrigin = ANONYMOUS) -> Job:
        """Accept that a volume gets a snapshot's bytes back; it keeps its present size.

        Raises:
            SnapshotNotFound: there is no such snapshot.
            VolumeBusy, VolumeUnusable: its volume is not available.
            SnapshotBusy, SnapshotUnusable: it is not ready.
        """
        async with idempotent_transaction(self._database, origin) as acceptance:
            job = await self._begin_restore(acceptance.session, snapshot_id, created_by=origin.caller)
            acceptance.job = job
        return await self._dispatch(job)

    async def retry_restore(self, session: AsyncSession, ended: Job) -> Job:
        """Try once more to restore a volume."""
        return await self._begin_restore(session, snapshot_of(ended), **retry_columns(ended))

    async def restore(self, job: ClaimedJob, grant: Grant) -> Succeeded:
        """Give the volume the snapshot's bytes on its backend."""
        driver, volume_id, snapshot_id = self._storage(job)
        size = await driver.restore_snapshot(volume_id, snapshot_id, grant)
        return Succeeded(result(job, size), copied=grant.copied)

    async def record_restore(self, session: AsyncSession, done: SucceededJobs) -> None:
        """The volumes have the snapshots' bytes."""
        rested = await VolumeRepository(session).release(volumes(done, resized=True), VolumeState.AVAILABLE)
        ready = await SnapshotRepository(session).release(snapshots(done, resized=False), SnapshotState.READY)
        require_both(done, rested, ready)

    async def abandon_restore(self, session: AsyncSession, given_up: FailedJobs) -> None:
        """The volumes have the old bytes or the snapshots', never a mixture, and the sizes that were found."""
        await VolumeRepository(session).release(volumes(given_up, resized=True), VolumeState.AVAILABLE)
        await SnapshotRepository(session).release(snapshots(given_up, resized=False), SnapshotState.READY)

    # --- delete ------------------------------------------------------------------------------------------

    async def request_delete(self, snapshot_id: UUID, *, origin: RequestOrigin = ANONYMOUS) -> Job:
        """Accept the end of a snapshot; one in the state ``error`` can be deleted too. Its volume is not touched.

        Raises:
            SnapshotNotFound: there is none.
            SnapshotBusy: it is being taken, restored, cloned or deleted.
        """
        async with idempotent_transaction(self._database, origin) as acceptance:
            job = await self._begin_delete(acceptance.session, snapshot_id, created_by=origin.caller)
            acceptance.job = job
        return await self._dispatch(job)

    async def retry_delete(self, session: AsyncSession, ended: Job) -> Job:
        """Try once more to delete a snapshot."""
        return await self._begin_delete(session, snapshot_of(ended), **retry_columns(ended))

    async def delete(self, job: ClaimedJob, grant: Grant) -> Succeeded:
        """Remove the snapshot from its backend."""
        driver, volume_id, snapshot_id = self._storage(job)
        await driver.delete_snapshot(volume_id, snapshot_id, grant)
        return Succeeded(result(job, None))

    async def record_delete(self, session: AsyncSession, done: SucceededJobs) -> None:
        """The snapshots are gone."""
        endings = snapshots(done, resized=False)
        require_held((ending.snapshot_id for ending in endings), await SnapshotRepository(session).remove(endings))

    async def abandon_delete(self, session: AsyncSession, given_up: FailedJobs) -> None:
        """The snapshots may be gone or not: they can be deleted again."""
        await SnapshotRepository(session).release(snapshots(given_up, resized=False), SnapshotState.ERROR)

    # --- what the use cases share ------------------------------------------------------------------------

    def _take_job(self, volume: Volume, snapshot: Snapshot, job_id: UUID, **columns: Any) -> Job:
        params = {"name": snapshot.name, "size": volume.size}
        columns |= {"job_id": job_id, "volume_id": volume.id, "backend": volume.backend}
        return self._job("snapshot.take", snapshot, params, fence=snapshot.version, **columns)

    async def _begin_restore(self, session: AsyncSession, snapshot_id: UUID, **columns: Any) -> Job:
        job_id, found = uuid7(), await SnapshotRepository(session).get(snapshot_id)
        volume = await VolumeRepository(session).acquire(found.volume_id, VolumeState.RESTORING, job_id)
        snapshot = await SnapshotRepository(session).acquire(snapshot_id, SnapshotState.RESTORING, job_id)
        columns |= {"job_id": job_id, "volume_id": volume.id, "backend": volume.backend}
        job = self._job("snapshot.restore", snapshot, {"size": volume.size}, fence=volume.version, **columns)
        return await JobRepository(session).add(job)

    async def _begin_delete(self, session: AsyncSession, snapshot_id: UUID, **columns: Any) -> Job:
        job_id = uuid7()
        snapshot = await SnapshotRepository(session).acquire(snapshot_id, SnapshotState.DELETING, job_id)
        volume = await VolumeRepository(session).get(snapshot.volume_id)
        job = self._delete_job(snapshot, volume.backend, job_id, fence=snapshot.version, **columns)
        return await JobRepository(session).add(job)


def _new_snapshot(volume: Volume, name: str, job_id: UUID) -> Snapshot:
    """Make the snapshot that is to be, in the hands of the job that is to take it."""
    return Snapshot(
        id=uuid7(),
        volume_id=volume.id,
        name=name,
        state=SnapshotState.TAKING,
        size=volume.size,
        version=1,
        job_id=job_id,
    )
