"""The use case of making a new volume from a snapshot, as adjacent methods: `SnapshotService` has the others."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession
from uuid_utils.compat import uuid7

from domain.errors import Invalid, UnknownBackend
from domain.jobs.claimed import ClaimedJob
from domain.jobs.idempotency import ANONYMOUS, RequestOrigin, idempotent_transaction
from domain.jobs.kinds import FailedJobs, SucceededJobs
from domain.jobs.model import Job, retry_columns
from domain.jobs.outcomes import Succeeded
from domain.jobs.store.jobs import JobRepository
from domain.snapshots.model import Snapshot
from domain.snapshots.operations import SnapshotJobs, require_both, result, snapshot_of, volume_of, volumes
from domain.snapshots.repository import SnapshotRepository
from domain.snapshots.states import SnapshotState
from domain.storage.context import Grant
from domain.volumes.model import Volume
from domain.volumes.repository import VolumeRepository
from domain.volumes.service import NewVolume
from domain.volumes.states import VolumeState


class Clones(SnapshotJobs):
    """Clones: volumes that begin with a snapshot's bytes, and are independent of it from then on."""

    async def request_clone(self, snapshot_id: UUID, wanted: NewVolume, *, origin: RequestOrigin = ANONYMOUS) -> Job:
        """Accept a new volume with a snapshot's bytes, on the same backend. Any number may be made at once.

        Raises:
            SnapshotNotFound: there is no such snapshot.
            SnapshotBusy, SnapshotUnusable: it is neither ready nor being cloned.
            Invalid, UnknownBackend: the size is smaller than the snapshot's, or the backend another one.
            NameTaken: another volume has the name.
        """
        async with idempotent_transaction(self._database, origin) as acceptance:
            session, job_id = acceptance.session, uuid7()
            clone = await self._add_clone(session, snapshot_id, wanted, job_id)
            job = await self._begin_clone(session, snapshot_id, clone, job_id, created_by=origin.caller)
            acceptance.job = job
        return await self._dispatch(job)

    async def retry_clone(self, session: AsyncSession, ended: Job) -> Job:
        """Try once more to make a clone that ended in ``error``."""
        job_id = uuid7()
        clone = await VolumeRepository(session).acquire(volume_of(ended), VolumeState.CREATING, job_id)
        return await self._begin_clone(session, snapshot_of(ended), clone, job_id, **retry_columns(ended))

    async def clone(self, job: ClaimedJob, grant: Grant) -> Succeeded:
        """Make the new volume on the snapshot's backend."""
        driver, source_id, snapshot_id = self._storage(job)
        size = await driver.clone_snapshot(source_id, snapshot_id, volume_of(job), job.params["size"], grant)
        return Succeeded(result(job, size), copied=grant.copied)

    async def record_clone(self, session: AsyncSession, done: SucceededJobs) -> None:
        """The new volumes are there, with the sizes that they got; the snapshots are at rest after their last clone."""
        made = await VolumeRepository(session).release(volumes(done, resized=True), VolumeState.AVAILABLE)
        require_both(done, made, await self._end_clones(session, done))

    async def abandon_clone(self, session: AsyncSession, given_up: FailedJobs) -> None:
        """The new volumes may or may not be there: they can be deleted, or the jobs retried."""
        await VolumeRepository(session).release(volumes(given_up, resized=True), VolumeState.ERROR)
        await self._end_clones(session, given_up)

    async def _add_clone(self, session: AsyncSession, snapshot_id: UUID, wanted: NewVolume, job_id: UUID) -> Volume:
        snapshot = await SnapshotRepository(session).get(snapshot_id)
        source = await VolumeRepository(session).get(snapshot.volume_id)
        self._check_backend(wanted, source)
        clone = wanted.to_row(backend=source.backend, size=_size(wanted, snapshot), job_id=job_id)
        return await VolumeRepository(session).add(clone)

    async def _begin_clone(
        self, session: AsyncSession, snapshot_id: UUID, clone: Volume, job_id: UUID, **columns: Any
    ) -> Job:
        snapshot = await SnapshotRepository(session).acquire(snapshot_id, SnapshotState.CLONING, job_id)
        params = {"of_volume": str(snapshot.volume_id), "size": clone.size}
        job = self._job("snapshot.clone", snapshot, params, fence=clone.version, job_id=job_id, **columns)
        job.volume_id, job.backend = clone.id, clone.backend
        return await JobRepository(session).add(job)

    async def _end_clones(self, session: AsyncSession, ended: SucceededJobs | FailedJobs) -> Sequence[UUID]:
        """Let go of snapshots that nobody clones any more; returns which ones were being cloned."""
        job_ids = [job.id for job, _ in ended]
        return await SnapshotRepository(session).release_after_clones(
            {snapshot_of(job) for job, _ in ended}, ended=job_ids
        )

    def _check_backend(self, wanted: NewVolume, source: Volume) -> None:
        if wanted.backend in (None, source.backend):
            return
        if wanted.backend not in self._backends:
            raise UnknownBackend(f"There is no backend named {wanted.backend!r}.", field="backend")
        raise Invalid(f"A clone is made on its snapshot's backend, {source.backend!r}.", field="backend")


def _size(wanted: NewVolume, snapshot: Snapshot) -> int:
    """How many bytes a clone is to have: a snapshot's are never cut off."""
    if wanted.size is not None and wanted.size < snapshot.size:
        raise Invalid(f"A clone cannot be smaller than its snapshot, {snapshot.size} bytes.", field="size")
    return wanted.size or snapshot.size
