"""The operations on volumes; each consists of five adjacent methods.

``request_x``   check the request, acquire the volume and insert the job, in one transaction
``retry_x``     the same for the retry of an ended job, in the caller's transaction
``x``           do the storage work, without any database access
``record_x``    store the effect, in the transaction that settles the job as succeeded
``abandon_x``   release the volume when the job failed for good or was cancelled
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession
from uuid_utils.compat import uuid7

from domain.db.database import Database
from domain.db.pagination import Page, PageRequest
from domain.errors import Invalid, UnknownBackend
from domain.jobs.acceptance import ANONYMOUS, RequestOrigin, accepting, log_accepted
from domain.jobs.claimed import ClaimedJob
from domain.jobs.kinds import FailedJobs, SucceededJobs
from domain.jobs.model import Job, retry_columns
from domain.jobs.outcomes import Payload, Succeeded
from domain.jobs.store.jobs import JobRepository
from domain.jobs.transport.job_queue import JobQueue
from domain.storage.backends import Backends
from domain.storage.context import Grant
from domain.storage.driver import StorageDriver
from domain.volumes.growth import Growth
from domain.volumes.model import Volume
from domain.volumes.operations import job_for, releases, require_all_held, result_of, volume_of
from domain.volumes.repository import VolumeFilter, VolumeRepository
from domain.volumes.request_batching import RequestBatcher
from domain.volumes.states import VolumeState

RefuseDelete = Callable[[AsyncSession, UUID], Awaitable[None]]


@dataclass(frozen=True)
class NewVolume:
    """A request for a new volume; ``size`` in bytes.

    Defaults of a clone are the size and the backend of its snapshot. Any other volume must have a size, and its default
    backend is the first one configured.
    """

    name: str
    size: int | None = None
    backend: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    autogrow: dict[str, Any] | None = None

    def to_row(self, *, backend: str, size: int, job_id: UUID) -> Volume:
        """Build the row of the new volume, held by the job that creates it; ``size`` in bytes."""
        return Volume(
            id=uuid7(),
            name=self.name,
            backend=backend,
            state=VolumeState.CREATING,
            job_id=job_id,
            size=size,
            version=1,
            labels=self.labels,
            autogrow=self.autogrow,
        )


@dataclass(frozen=True)
class VolumeChange:
    """Changes to a volume that need no storage work. Only the members named in ``changed`` apply."""

    changed: frozenset[str]
    name: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    autogrow: dict[str, Any] | None = None


class VolumeService:
    """The operations on volumes, for the API and the workers."""

    def __init__(
        self, database: Database, queue: JobQueue, backends: Backends, *, max_attempts: int, refuse_delete: RefuseDelete
    ) -> None:
        """Create the service; ``refuse_delete`` raises if another package's rows depend on the volume."""
        self._refuse_delete = refuse_delete
        self._database = database
        self._queue = queue
        self._backends = backends
        self._max_attempts = max_attempts
        self._requests = RequestBatcher(database, max_attempts=max_attempts)

    # --- read and change ---------------------------------------------------------------------------------

    async def get(self, volume_id: UUID) -> Volume:
        """Read one volume.

        Raises:
            VolumeNotFound: no such volume.
        """
        async with self._database.transaction() as session:
            return await VolumeRepository(session).get(volume_id)

    async def list_volumes(self, filters: VolumeFilter, request: PageRequest) -> Page[Volume]:
        """List volumes, newest first.

        Raises:
            BadCursor: the cursor belongs to another list.
        """
        before = request.before
        async with self._database.transaction() as session:
            return request.page(await VolumeRepository(session).page(filters, before=before, limit=request.limit))

    async def change(self, volume_id: UUID, change: VolumeChange) -> Volume:
        """Rename a volume, or replace its labels or its autogrow policy. Allowed while a job holds the volume.

        Raises:
            VolumeNotFound: no such volume.
            NameTaken: another volume has the new name.
        """
        async with self._database.transaction() as session:
            volumes = VolumeRepository(session)
            volume = await volumes.lock(volume_id)
            if "labels" in change.changed:
                volume.labels = change.labels
            if "autogrow" in change.changed:
                volume.autogrow = change.autogrow
            if "name" in change.changed:
                await volumes.rename(volume, change.name)
            await session.flush()
            await session.refresh(volume)
        return volume

    def path(self, volume: Volume) -> str | None:
        """Return the path of the volume's data; None if the backend has no files or is no longer configured."""
        return self._backends.get(volume.backend).path(volume.id) if volume.backend in self._backends else None

    # --- create ------------------------------------------------------------------------------------------

    async def request_create(self, new: NewVolume, *, origin: RequestOrigin = ANONYMOUS) -> Job:
        """Accept a new volume.

        Raises:
            Invalid: the request has no size.
            UnknownBackend: the backend is not configured.
            NameTaken: another volume has the name.
        """
        volume = self._new_volume(new)
        job = self._job("volume.create", volume, {"size": volume.size}, created_by=origin.caller)
        if origin.idempotency is None and await self._requests.create(volume, job):
            return await self._log_and_dispatch(job)
        async with accepting(self._database, origin) as accepted:
            await VolumeRepository(accepted.session).add(volume)
            accepted.job = await JobRepository(accepted.session).add(job)
        return await self._dispatch(job)

    async def retry_create(self, session: AsyncSession, ended: Job) -> Job:
        """Retry the creation of a volume that ended in ``error``."""
        volume = await VolumeRepository(session).acquire(volume_of(ended), VolumeState.CREATING, uuid7())
        return await self._add_retry(session, ended, volume, {"size": ended.params["size"]})

    async def create(self, job: ClaimedJob, grant: Grant) -> Succeeded:
        """Create the volume on its backend."""
        driver, volume_id = self._storage(job)
        return Succeeded(result_of(job, await driver.create(volume_id, job.params["size"], grant)))

    async def record_create(self, session: AsyncSession, succeeded: SucceededJobs) -> None:
        """Store the sizes reported by the backend and release the volumes."""
        changed = await VolumeRepository(session).release(releases(succeeded), VolumeState.AVAILABLE)
        require_all_held(succeeded, changed)

    async def abandon_create(self, session: AsyncSession, failed: FailedJobs) -> None:
        """Release the volumes in ``error``, since they may exist on the backend: delete them, or retry the jobs."""
        await VolumeRepository(session).release(releases(failed), VolumeState.ERROR)

    # --- expand ------------------------------------------------------------------------------------------

    async def request_expand(self, volume_id: UUID, growth: Growth, *, origin: RequestOrigin = ANONYMOUS) -> Job:
        """Accept a larger size for a volume.

        Raises:
            VolumeNotFound: no such volume.
            VolumeBusy, VolumeUnusable: the volume is not available.
            ShrinkRefused, SizeLimitExceeded: the volume cannot have the new size.
        """
        if origin.idempotency is None and (batched := await self._requests.expand(volume_id, growth, origin.caller)):
            return await self._log_and_dispatch(batched)
        async with accepting(self._database, origin) as accepted:
            volume = await VolumeRepository(accepted.session).acquire(volume_id, VolumeState.EXPANDING, uuid7())
            job = self._job("volume.expand", volume, {"to_size": growth.target(volume.size)}, created_by=origin.caller)
            accepted.job = await JobRepository(accepted.session).add(job)
        return await self._dispatch(job)

    async def retry_expand(self, session: AsyncSession, ended: Job) -> Job:
        """Retry an expansion to the size that the first request asked for."""
        volume = await VolumeRepository(session).acquire(volume_of(ended), VolumeState.EXPANDING, uuid7())
        to_size = Growth(to=ended.params["to_size"]).target(volume.size)
        return await self._add_retry(session, ended, volume, {"to_size": to_size})

    async def expand(self, job: ClaimedJob, grant: Grant) -> Succeeded:
        """Expand the volume on its backend to the size stored in the job."""
        driver, volume_id = self._storage(job)
        return Succeeded(result_of(job, await driver.expand(volume_id, job.params["to_size"], grant)))

    async def record_expand(self, session: AsyncSession, succeeded: SucceededJobs) -> None:
        """Store the sizes reported by the backend and release the volumes."""
        changed = await VolumeRepository(session).release(releases(succeeded), VolumeState.AVAILABLE)
        require_all_held(succeeded, changed)

    async def abandon_expand(self, session: AsyncSession, failed: FailedJobs) -> None:
        """Store the sizes that `seal` found on the backend and release the volumes."""
        await VolumeRepository(session).release(releases(failed), VolumeState.AVAILABLE)

    # --- delete ------------------------------------------------------------------------------------------

    async def request_delete(self, volume_id: UUID, *, origin: RequestOrigin = ANONYMOUS) -> Job:
        """Accept the deletion of a volume, which may be in the state ``error``.

        Raises:
            VolumeNotFound: no such volume.
            VolumeBusy: a job holds it.
            VolumeHasSnapshots: its snapshots depend on it.
        """
        async with accepting(self._database, origin) as accepted:
            volume = await VolumeRepository(accepted.session).acquire(volume_id, VolumeState.DELETING, uuid7())
            await self._refuse_delete(accepted.session, volume_id)
            job = self._job("volume.delete", volume, {}, created_by=origin.caller)
            accepted.job = await JobRepository(accepted.session).add(job)
        return await self._dispatch(job)

    async def retry_delete(self, session: AsyncSession, ended: Job) -> Job:
        """Retry the deletion of a volume."""
        volume = await VolumeRepository(session).acquire(volume_of(ended), VolumeState.DELETING, uuid7())
        await self._refuse_delete(session, volume.id)
        return await self._add_retry(session, ended, volume, {})

    async def delete(self, job: ClaimedJob, grant: Grant) -> Succeeded:
        """Delete the volume on its backend."""
        driver, volume_id = self._storage(job)
        await driver.delete(volume_id, grant)
        return Succeeded(result_of(job, None))

    async def record_delete(self, session: AsyncSession, succeeded: SucceededJobs) -> None:
        """Delete the rows of the volumes."""
        require_all_held(succeeded, await VolumeRepository(session).remove(releases(succeeded)))

    async def abandon_delete(self, session: AsyncSession, failed: FailedJobs) -> None:
        """Release the volumes in ``error``, since they may still exist on the backend: delete them again."""
        await VolumeRepository(session).release(releases(failed), VolumeState.ERROR)

    # --- shared by the operations ------------------------------------------------------------------------

    async def seal(self, job: ClaimedJob, grant: Grant) -> Payload:
        """Bar all earlier attempts from publishing, and report what they left on the backend."""
        driver, volume_id = self._storage(job)
        return result_of(job, await driver.seal(volume_id, grant))

    def _new_volume(self, new: NewVolume) -> Volume:
        backend = new.backend or self._backends.names()[0]
        if backend not in self._backends:
            raise UnknownBackend(f"There is no backend named {backend!r}.", field="backend")
        if new.size is None:
            raise Invalid("A volume needs a size.", field="size")
        return new.to_row(backend=backend, size=new.size, job_id=uuid7())

    def _job(self, kind: str, volume: Volume, params: Payload, **columns: Any) -> Job:
        return job_for(volume, kind, params, max_attempts=self._max_attempts, **columns)

    async def _add_retry(self, session: AsyncSession, ended: Job, volume: Volume, params: Payload) -> Job:
        job = self._job(ended.kind, volume, params, **retry_columns(ended))
        return await JobRepository(session).add(job)

    async def _log_and_dispatch(self, job: Job) -> Job:
        """Log and dispatch a job that was accepted in a batch, which logs nothing itself."""
        log_accepted(job)
        return await self._dispatch(job)

    async def _dispatch(self, job: Job) -> Job:
        await self._queue.dispatch([job.message])
        return job

    def _storage(self, job: ClaimedJob) -> tuple[StorageDriver, UUID]:
        return self._backends.get(job.backend or ""), volume_of(job)
