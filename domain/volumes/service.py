"""The use cases of volumes, each as adjacent methods.

``request_x`` checks, moves the state and inserts the job, in one transaction; ``again_x`` does so for a retry.
``x`` does the storage work and touches no database. ``record_x`` writes down its effect in the transaction that
settles the job. ``abandon_x`` is the way out when the job is given up or cancelled.
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
from domain.jobs.claimed import ClaimedJob
from domain.jobs.idempotency import ANONYMOUS, RequestOrigin, idempotent_transaction, log_accepted
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
from domain.volumes.operations import job_on, releases, require_all, result_of, volume_of
from domain.volumes.repository import VolumeFilter, VolumeRepository
from domain.volumes.request_batching import RequestBatcher
from domain.volumes.states import VolumeState

RefuseDelete = Callable[[AsyncSession, UUID], Awaitable[None]]


@dataclass(frozen=True)
class NewVolume:
    """What a user asks for. ``size`` in bytes; only a clone can do without, and is then as large as its snapshot.

    No ``backend`` means the first one that is configured; for a clone, its snapshot's.
    """

    name: str
    size: int | None = None
    backend: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    autogrow: dict[str, Any] | None = None

    def to_row(self, *, backend: str, size: int, job_id: UUID) -> Volume:
        """Make the volume that is to be, in the hands of the job that is to make it; ``size`` in bytes."""
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
    """What a user changes of a volume without any storage work; what is not in ``given`` stays."""

    given: frozenset[str]
    name: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    autogrow: dict[str, Any] | None = None


class VolumeService:
    """Volumes, for HTTP and for the workers."""

    def __init__(
        self, database: Database, queue: JobQueue, backends: Backends, *, max_attempts: int, refuse_delete: RefuseDelete
    ) -> None:
        """``refuse_delete`` raises when other rooms know of something that depends on a volume."""
        self._refuse_delete = refuse_delete
        self._database = database
        self._queue = queue
        self._backends = backends
        self._max_attempts = max_attempts
        self._requests = RequestBatcher(database, max_attempts=max_attempts)

    # --- reading and naming ------------------------------------------------------------------------------

    async def get(self, volume_id: UUID) -> Volume:
        """Read one volume.

        Raises:
            VolumeNotFound: there is none.
        """
        async with self._database.transaction() as session:
            return await VolumeRepository(session).get(volume_id)

    async def list_volumes(self, filters: VolumeFilter, request: PageRequest) -> Page[Volume]:
        """List volumes, newest first.

        Raises:
            BadCursor: the cursor is not from this list.
        """
        before = request.before
        async with self._database.transaction() as session:
            return request.page(await VolumeRepository(session).page(filters, before=before, limit=request.limit))

    async def change(self, volume_id: UUID, change: VolumeChange) -> Volume:
        """Rename a volume, or replace its labels or its autogrow policy; allowed while a job has it.

        Raises:
            VolumeNotFound: there is none.
            NameTaken: another volume has the new name.
        """
        async with self._database.transaction() as session:
            volumes = VolumeRepository(session)
            volume = await volumes.lock(volume_id)
            if "labels" in change.given:
                volume.labels = change.labels
            if "autogrow" in change.given:
                volume.autogrow = change.autogrow
            if "name" in change.given:
                await volumes.rename(volume, change.name)
            await session.flush()
            await session.refresh(volume)
        return volume

    def path(self, volume: Volume) -> str | None:
        """Where a user finds the volume's bytes; None on a backend without files, or one that is configured no more."""
        return self._backends.get(volume.backend).path(volume.id) if volume.backend in self._backends else None

    # --- create ------------------------------------------------------------------------------------------

    async def request_create(self, wanted: NewVolume, *, origin: RequestOrigin = ANONYMOUS) -> Job:
        """Accept a new volume.

        Raises:
            Invalid: it has no size.
            UnknownBackend: the backend is not configured.
            NameTaken: another volume has the name.
        """
        volume = self._new_volume(wanted)
        job = self._job("volume.create", volume, {"size": volume.size}, created_by=origin.caller)
        if origin.key is None and await self._requests.create(volume, job):
            return await self._log_and_dispatch(job)
        async with idempotent_transaction(self._database, origin) as acceptance:
            await VolumeRepository(acceptance.session).add(volume)
            acceptance.job = await JobRepository(acceptance.session).add(job)
        return await self._dispatch(job)

    async def retry_create(self, session: AsyncSession, ended: Job) -> Job:
        """Try once more to create a volume that ended in ``error``."""
        volume = await VolumeRepository(session).acquire(volume_of(ended), VolumeState.CREATING, uuid7())
        return await self._add_retry(session, ended, volume, {"size": ended.params["size"]})

    async def create(self, job: ClaimedJob, grant: Grant) -> Succeeded:
        """Make the volume on its backend."""
        driver, volume_id = self._storage(job)
        return Succeeded(result_of(job, await driver.create(volume_id, job.params["size"], grant)))

    async def record_create(self, session: AsyncSession, done: SucceededJobs) -> None:
        """The volumes are there, with the sizes that they got."""
        require_all(done, await VolumeRepository(session).release(releases(done), VolumeState.AVAILABLE))

    async def abandon_create(self, session: AsyncSession, given_up: FailedJobs) -> None:
        """The volumes may or may not be there: they can be deleted, or the jobs retried."""
        await VolumeRepository(session).release(releases(given_up), VolumeState.ERROR)

    # --- expand ------------------------------------------------------------------------------------------

    async def request_expand(self, volume_id: UUID, growth: Growth, *, origin: RequestOrigin = ANONYMOUS) -> Job:
        """Accept a larger size for a volume.

        Raises:
            VolumeNotFound: there is none.
            VolumeBusy, VolumeUnusable: it is not available.
            ShrinkRefused, SizeLimitExceeded: the new size is out of the question.
        """
        if origin.key is None and (taken := await self._requests.expand(volume_id, growth, origin.caller)):
            return await self._log_and_dispatch(taken)
        async with idempotent_transaction(self._database, origin) as acceptance:
            volume = await VolumeRepository(acceptance.session).acquire(volume_id, VolumeState.EXPANDING, uuid7())
            job = self._job("volume.expand", volume, {"to_size": growth.target(volume.size)}, created_by=origin.caller)
            acceptance.job = await JobRepository(acceptance.session).add(job)
        return await self._dispatch(job)

    async def retry_expand(self, session: AsyncSession, ended: Job) -> Job:
        """Ask once more for the size that was wanted then."""
        volume = await VolumeRepository(session).acquire(volume_of(ended), VolumeState.EXPANDING, uuid7())
        to_size = Growth(to=ended.params["to_size"]).target(volume.size)
        return await self._add_retry(session, ended, volume, {"to_size": to_size})

    async def expand(self, job: ClaimedJob, grant: Grant) -> Succeeded:
        """Grow the volume on its backend to the size that the job names."""
        driver, volume_id = self._storage(job)
        return Succeeded(result_of(job, await driver.expand(volume_id, job.params["to_size"], grant)))

    async def record_expand(self, session: AsyncSession, done: SucceededJobs) -> None:
        """The volumes have the sizes that their backends report."""
        require_all(done, await VolumeRepository(session).release(releases(done), VolumeState.AVAILABLE))

    async def abandon_expand(self, session: AsyncSession, given_up: FailedJobs) -> None:
        """The volumes are what they were found to be."""
        await VolumeRepository(session).release(releases(given_up), VolumeState.AVAILABLE)

    # --- delete ------------------------------------------------------------------------------------------

    async def request_delete(self, volume_id: UUID, *, origin: RequestOrigin = ANONYMOUS) -> Job:
        """Accept the end of a volume; one in the state ``error`` can be deleted too.

        Raises:
            VolumeNotFound: there is none.
            VolumeBusy: a job has it.
            VolumeHasSnapshots: they would lose what they depend on.
        """
        async with idempotent_transaction(self._database, origin) as acceptance:
            volume = await VolumeRepository(acceptance.session).acquire(volume_id, VolumeState.DELETING, uuid7())
            await self._refuse_delete(acceptance.session, volume_id)
            job = self._job("volume.delete", volume, {}, created_by=origin.caller)
            acceptance.job = await JobRepository(acceptance.session).add(job)
        return await self._dispatch(job)

    async def retry_delete(self, session: AsyncSession, ended: Job) -> Job:
        """Try once more to delete a volume."""
        volume = await VolumeRepository(session).acquire(volume_of(ended), VolumeState.DELETING, uuid7())
        await self._refuse_delete(session, volume.id)
        return await self._add_retry(session, ended, volume, {})

    async def delete(self, job: ClaimedJob, grant: Grant) -> Succeeded:
        """Remove the volume from its backend."""
        driver, volume_id = self._storage(job)
        await driver.delete(volume_id, grant)
        return Succeeded(result_of(job, None))

    async def record_delete(self, session: AsyncSession, done: SucceededJobs) -> None:
        """The volumes are gone."""
        require_all(done, await VolumeRepository(session).remove(releases(done)))

    async def abandon_delete(self, session: AsyncSession, given_up: FailedJobs) -> None:
        """The volumes may be gone or not: they can be deleted again."""
        await VolumeRepository(session).release(releases(given_up), VolumeState.ERROR)

    # --- what the use cases share ------------------------------------------------------------------------

    async def seal(self, job: ClaimedJob, grant: Grant) -> Payload:
        """Shut earlier attempts out of the storage for good, and report what they left there."""
        driver, volume_id = self._storage(job)
        return result_of(job, await driver.seal(volume_id, grant))

    def _new_volume(self, wanted: NewVolume) -> Volume:
        backend = wanted.backend or self._backends.names()[0]
        if backend not in self._backends:
            raise UnknownBackend(f"There is no backend named {backend!r}.", field="backend")
        if wanted.size is None:
            raise Invalid("A volume needs a size.", field="size")
        return wanted.to_row(backend=backend, size=wanted.size, job_id=uuid7())

    def _job(self, kind: str, volume: Volume, params: Payload, **columns: Any) -> Job:
        return job_on(volume, kind, params, max_attempts=self._max_attempts, **columns)

    async def _add_retry(self, session: AsyncSession, ended: Job, volume: Volume, params: Payload) -> Job:
        job = self._job(ended.kind, volume, params, **retry_columns(ended))
        return await JobRepository(session).add(job)

    async def _log_and_dispatch(self, job: Job) -> Job:
        """Go on with a job that was accepted together with others."""
        log_accepted(job)
        return await self._dispatch(job)

    async def _dispatch(self, job: Job) -> Job:
        await self._queue.dispatch([job.dispatch])
        return job

    def _storage(self, job: ClaimedJob) -> tuple[StorageDriver, UUID]:
        return self._backends.get(job.backend or ""), volume_of(job)
