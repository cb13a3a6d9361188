"""Requests about snapshots: read them, and accept jobs that take, restore, clone or delete one."""

from collections.abc import Collection, Mapping
from functools import partial
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession
from uuid_utils.compat import uuid7

from domain.db.database import Database
from domain.db.pagination import Page, PageRequest
from domain.errors import Invalid
from domain.jobs.acceptance import ANONYMOUS, AcceptedRequest, RequestOrigin, accepting
from domain.jobs.attempt import Payload
from domain.jobs.kinds import JobKind
from domain.jobs.model import Job
from domain.jobs.store.jobs import JobRepository
from domain.jobs.transport.job_queue import JobQueue
from domain.operations import SnapshotState, VolumeState, job_for
from domain.snapshots.model import Snapshot
from domain.snapshots.repository import BulkSnapshotRepository, SnapshotFilter, SnapshotRepository
from domain.snapshots.retention import RetentionRule
from domain.storage.directory import BackendDirectory
from domain.volumes.attachments.repository import attached_ones
from domain.volumes.filesystems.growth import adopt_filesystem, growth_of_new_bytes
from domain.volumes.model import Volume
from domain.volumes.repository import VolumeRepository
from domain.volumes.service import NewVolume


class SnapshotService:
    """The snapshots, for the API."""

    def __init__(self, database: Database, queue: JobQueue, directory: BackendDirectory, *, max_attempts: int) -> None:
        self._database = database
        self._queue = queue
        self._directory = directory
        self._max_attempts = max_attempts

    # --- read --------------------------------------------------------------------------------------------

    async def get(self, snapshot_id: UUID, *, project_id: UUID) -> Snapshot:
        """Read one snapshot of a project.

        Raises:
            SnapshotNotFound: no such snapshot.
        """
        async with self._database.transaction() as session:
            return await SnapshotRepository(session).get(snapshot_id, project_id)

    async def list_snapshots(
        self, filters: SnapshotFilter, request: PageRequest, *, project_id: UUID
    ) -> Page[Snapshot]:
        """List the snapshots of a project, newest first.

        Raises:
            BadCursor: the cursor belongs to another list.
        """
        before = request.before
        async with self._database.transaction() as session:
            snapshots = SnapshotRepository(session)
            return request.page(await snapshots.page(filters, project_id, before=before, limit=request.limit))

    # --- request -----------------------------------------------------------------------------------------

    async def request_take(
        self,
        volume_id: UUID,
        name: str,
        *,
        labels: Mapping[str, str] | None = None,
        allow_torn: bool = False,
        origin: RequestOrigin = ANONYMOUS,
    ) -> Job:
        """Accept a new snapshot of a volume.

        Unless it may be torn, the job fails if the volume is in use and the bytes of one moment cannot be kept.

        Raises:
            VolumeNotFound: no such volume.
            VolumeBusy, VolumeUnusable: the volume is not available.
            NameTaken: another snapshot of the volume has the name.
            QuotaExceeded: the project may not have it.
        """
        async with accepting(self._database, origin) as accepted:
            session, project_id = accepted.session, origin.actor.project_id
            accepted.room.take(snapshots=1)
            volumes = VolumeRepository(session)
            volume = await volumes.acquire(volume_id, project_id, VolumeState.SNAPSHOTTING, uuid7())
            snapshot = await SnapshotRepository(session).add(_new_snapshot(volume, name, labels or {}))
            params = {"name": name, "size": volume.size, **await _taking(session, volume, allow_torn=allow_torn)}
            job = self._job(JobKind.SNAPSHOT_TAKE, params, volume, snapshot, origin.caller)
            accepted.job = await JobRepository(session).add(job)
        return await self._dispatch(accepted.job)

    async def request_restore(self, snapshot_id: UUID, *, origin: RequestOrigin = ANONYMOUS) -> Job:
        """Accept the restore of a volume from a snapshot. The volume keeps its current size.

        Raises:
            SnapshotNotFound: no such snapshot.
            VolumeBusy, VolumeUnusable: its volume is not available.
            SnapshotBusy, SnapshotUnusable: the snapshot is not ready.
        """
        async with accepting(self._database, origin) as accepted:
            project_id, job_id = origin.actor.project_id, uuid7()
            volumes, snapshots = VolumeRepository(accepted.session), SnapshotRepository(accepted.session)
            found = await snapshots.get(snapshot_id, project_id)
            volume = await volumes.acquire(found.volume_id, project_id, VolumeState.RESTORING, job_id)
            snapshot = await snapshots.acquire(snapshot_id, project_id, SnapshotState.RESTORING, job_id)
            params = {"size": volume.size, **growth_of_new_bytes(volume)}
            job = self._job(JobKind.SNAPSHOT_RESTORE, params, volume, snapshot, origin.caller)
            accepted.job = await JobRepository(accepted.session).add(job)
        return await self._dispatch(accepted.job)

    async def request_clone(self, snapshot_id: UUID, new: NewVolume, *, origin: RequestOrigin = ANONYMOUS) -> Job:
        """Accept a new volume with a snapshot's data, on the same backend. Clones of a snapshot may run concurrently.

        Raises:
            SnapshotNotFound: no such snapshot.
            SnapshotBusy, SnapshotUnusable: the snapshot is neither ready nor being cloned.
            Invalid, UnknownBackend: the size is smaller than the snapshot's, or the backend or the file system is
                another one.
            QuotaExceeded: the project may not have it.
            NameTaken: another volume of the project has the name.
            BackendOvercommitted: the backend may not promise so much.
        """
        async with accepting(self._database, origin) as accepted:
            project_id, job_id = origin.actor.project_id, uuid7()
            volumes, snapshots = VolumeRepository(accepted.session), SnapshotRepository(accepted.session)
            found = await snapshots.get(snapshot_id, project_id)
            volume = await volumes.get(found.volume_id, project_id)
            row = await self._clone_row(new, volume, found.size, job_id)
            row.source_snapshot_id = found.id
            clone = await self._add_clone(accepted, row)
            snapshot = await snapshots.acquire(snapshot_id, project_id, SnapshotState.CLONING, job_id)
            params = {"size": clone.size, **growth_of_new_bytes(clone)}
            job = self._job(JobKind.SNAPSHOT_CLONE, params, clone, snapshot, origin.caller)
            accepted.job = await JobRepository(accepted.session).add(job)
        return await self._dispatch(accepted.job)

    async def request_clone_of_volume(
        self, volume_id: UUID, new: NewVolume, *, allow_torn: bool = False, origin: RequestOrigin = ANONYMOUS
    ) -> Job:
        """Accept a new volume with a volume's data, on the same backend.

        The job holds both volumes: as while a snapshot is taken, nothing else changes the bytes or the size of the one
        that is cloned, nor deletes it. ``allow_torn`` is as for `request_take`.

        Raises:
            VolumeNotFound: no such volume.
            VolumeBusy, VolumeUnusable: the volume is not available.
            Invalid, UnknownBackend, QuotaExceeded, NameTaken, BackendOvercommitted: as for `request_clone`.
        """
        async with accepting(self._database, origin) as accepted:
            project_id, job_id = origin.actor.project_id, uuid7()
            volumes = VolumeRepository(accepted.session)
            source = await volumes.acquire(volume_id, project_id, VolumeState.SNAPSHOTTING, job_id)
            row = await self._clone_row(new, source, source.size, job_id)
            row.source_volume_id = source.id
            row.filesystem_grown_to = source.filesystem_grown_to
            clone = await self._add_clone(accepted, row)
            taking = await _taking(accepted.session, source, allow_torn=allow_torn)
            params = {"size": clone.size, "of_volume": str(source.id), **taking, **growth_of_new_bytes(clone)}
            job = self._job(JobKind.VOLUME_CLONE, params, clone, None, origin.caller)
            accepted.job = await JobRepository(accepted.session).add(job)
        return await self._dispatch(accepted.job)

    async def request_delete(self, snapshot_id: UUID, *, origin: RequestOrigin = ANONYMOUS) -> Job:
        """Accept the deletion of a snapshot, which may be in the state ``error``. Its volume is not acquired.

        Raises:
            SnapshotNotFound: no such snapshot.
            SnapshotBusy: it is being taken, restored, cloned or deleted.
        """
        async with accepting(self._database, origin) as accepted:
            session, project_id = accepted.session, origin.actor.project_id
            snapshots = SnapshotRepository(session)
            snapshot = await snapshots.acquire(snapshot_id, project_id, SnapshotState.DELETING, uuid7())
            backend = (await VolumeRepository(session).get(snapshot.volume_id, project_id)).backend
            job = self._delete_job(snapshot, backend, origin.caller)
            accepted.job = await JobRepository(session).add(job)
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
        renewed = {snapshot.volume_id for snapshot in expired}
        backends = await VolumeRepository(session).backends_of(renewed, expired[0].project_id)
        acquired = await snapshots.acquire_each({snapshot.id: uuid7() for snapshot in expired}, SnapshotState.DELETING)
        jobs = [self._delete_job(snapshot, backends[snapshot.volume_id], caller) for snapshot in acquired]
        await JobRepository(session).add_undispatched(jobs)

    async def _clone_row(self, new: NewVolume, of: Volume, least: int, job_id: UUID) -> Volume:
        """Build the row of a clone of a volume or of its snapshot, which has ``least`` bytes."""
        if new.backend not in (None, of.backend):
            await self._directory.find(new.backend)
            raise Invalid(f"A clone is made on the backend of its source, {of.backend!r}.", field="backend")
        if new.size is not None and new.size < least:
            raise Invalid(f"A clone cannot be smaller than its source, {least} bytes.", field="size")
        size = new.size or least
        row = new.to_row(project_id=of.project_id, backend=of.backend, size=size, job_id=job_id)
        adopt_filesystem(row, of)
        return row

    async def _add_clone(self, accepted: AcceptedRequest, row: Volume) -> Volume:
        accepted.last_check = partial(self._directory.require_room, row.backend, row.size)
        accepted.room.take(volumes=1, bytes=row.size)
        return await VolumeRepository(accepted.session).add(row)

    def _job(
        self, kind: JobKind, params: Payload, volume: Volume, snapshot: Snapshot | None, caller: str | None
    ) -> Job:
        return job_for(kind, params, volume, snapshot, max_attempts=self._max_attempts, created_by=caller)

    def _delete_job(self, snapshot: Snapshot, backend: str, caller: str | None) -> Job:
        columns = {"backend": backend, "created_by": caller}
        return job_for(JobKind.SNAPSHOT_DELETE, {}, None, snapshot, max_attempts=self._max_attempts, **columns)

    async def _dispatch(self, job: Job) -> Job:
        await self._queue.dispatch([job.message])
        return job


async def _taking(session: AsyncSession, volume: Volume, *, allow_torn: bool) -> Payload:
    """Return the params of a job that takes a snapshot of a volume, which it holds."""
    return {"allow_torn": allow_torn, "attached": bool(await attached_ones(session, [volume.id]))}


def _new_snapshot(volume: Volume, name: str, labels: Mapping[str, str]) -> Snapshot:
    """Build the row of a new snapshot, held by the job that holds the volume."""
    return Snapshot(
        id=uuid7(),
        project_id=volume.project_id,
        volume_id=volume.id,
        name=name,
        state=SnapshotState.TAKING,
        size=volume.size,
        version=1,
        job_id=volume.job_id,
        labels=dict(labels),
    )
