"""Requests about volumes: read and change them, and accept jobs that create, expand or delete one."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession
from uuid_utils.compat import uuid7

from domain import tracing
from domain.audit.model import NOBODY, Actor, new_entry
from domain.audit.repository import add_entries
from domain.db.database import Database
from domain.db.pagination import Page, PageRequest
from domain.errors import Invalid
from domain.jobs.acceptance import ANONYMOUS, RequestOrigin, accepting, log_accepted
from domain.jobs.attempt import Payload
from domain.jobs.kinds import JobKind
from domain.jobs.model import Job
from domain.jobs.store.jobs import JobRepository
from domain.jobs.transport.job_queue import JobQueue
from domain.operations import OPERATIONS, VolumeState, job_for
from domain.storage.directory import BackendDirectory
from domain.volumes.batches import CreateRequest, ExpandRequest, RequestBatches
from domain.volumes.filesystems.growth import grown_offline, growth_params
from domain.volumes.model import Growth, Volume, VolumeRow, rounded_up
from domain.volumes.repository import VolumeFilter, VolumeRepository

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
    #: Other columns that the client may set.
    columns: Mapping[str, Any] = field(default_factory=dict)

    def to_row(self, *, project_id: UUID, backend: str, size: int, job_id: UUID) -> Volume:
        """Build the row of the new volume, held by the job that creates it; ``size`` in bytes, which is rounded up."""
        return Volume(
            id=uuid7(),
            project_id=project_id,
            name=self.name,
            backend=backend,
            state=VolumeState.CREATING,
            job_id=job_id,
            size=rounded_up(size),
            version=1,
            **{"labels": {}, **self.columns},
        )


class VolumeService:
    """The volumes, for the API."""

    def __init__(
        self,
        database: Database,
        queue: JobQueue,
        directory: BackendDirectory,
        *,
        max_attempts: int,
        refuse_delete: RefuseDelete,
    ) -> None:
        """Create the service; ``refuse_delete`` raises if another package's rows depend on the volume."""
        self._refuse_delete = refuse_delete
        self._database = database
        self._queue = queue
        self._directory = directory
        self._max_attempts = max_attempts
        self._batches = RequestBatches(database, directory, max_attempts=max_attempts)

    # --- read and change ---------------------------------------------------------------------------------

    async def get(self, volume_id: UUID, *, project_id: UUID) -> Volume:
        """Read one volume of a project.

        Raises:
            VolumeNotFound: no such volume.
        """
        async with self._database.transaction() as session:
            return await VolumeRepository(session).get(volume_id, project_id)

    async def list_volumes(self, filters: VolumeFilter, request: PageRequest, *, project_id: UUID) -> Page[Volume]:
        """List the volumes of a project, newest first.

        Raises:
            BadCursor: the cursor belongs to another list.
        """
        before = request.before
        async with self._database.transaction() as session:
            volumes = VolumeRepository(session)
            return request.page(await volumes.page(filters, project_id, before=before, limit=request.limit))

    async def change(
        self,
        volume_id: UUID,
        changes: Mapping[str, Any],
        *,
        check: Callable[[Volume], None] = lambda _: None,
        actor: Actor = NOBODY,
    ) -> Volume:
        """Change columns that need no storage work. Allowed while a job holds the volume.

        ``check`` may refuse the locked row by an error, which is raised here; nothing is changed then.

        Raises:
            VolumeNotFound: no such volume.
            NameTaken: another volume has the new name.
        """
        async with self._database.transaction() as session:
            volumes = VolumeRepository(session)
            volume = await volumes.lock(volume_id, actor.project_id)
            check(volume)
            for name, value in changes.items():
                setattr(volume, name, value)
            await volumes.flush(volume)
            details = {"members": sorted(changes)}
            entry = new_entry(actor, "volume.update", subject_id=volume.id, subject_name=volume.name, details=details)
            await add_entries(session, [entry])
            await session.refresh(volume)
        return volume

    def path(self, volume: Volume) -> str | None:
        """Return the path of the volume's data; None if the backend has no files or is unknown."""
        return self._directory.path(volume.backend, volume.id)

    # --- request -----------------------------------------------------------------------------------------

    @tracing.sends
    async def request_create(self, new: NewVolume, *, origin: RequestOrigin = ANONYMOUS) -> Job:
        """Accept a new volume.

        Raises:
            Invalid: the request has no size, or the backend cannot make its file system, or not of this size.
            UnknownBackend: the backend is not configured.
            QuotaExceeded: the project may not have it.
            NameTaken: another volume of the project has the name.
            BackendOvercommitted: the backend may not promise so much.
        """
        volume = await self._new_volume(new, origin.actor.project_id)
        params: Payload = {"size": volume.size}
        if volume.filesystem is not None:
            params["filesystem"] = volume.filesystem
        job = self._job(JobKind.VOLUME_CREATE, volume, params, created_by=origin.caller)
        if origin.idempotency is None and await self._batches.create(CreateRequest(volume, job, origin.actor)):
            return await self._log_and_dispatch(job)
        async with accepting(self._database, origin) as accepted:
            accepted.last_check = partial(self._directory.require_room, volume.backend, volume.size)
            accepted.room.take(volumes=1, bytes=volume.size)
            await VolumeRepository(accepted.session).add(volume)
            accepted.job = await JobRepository(accepted.session).add(job)
        return await self._dispatch(job)

    @tracing.sends
    async def request_expand(self, volume_id: UUID, growth: Growth, *, origin: RequestOrigin = ANONYMOUS) -> Job:
        """Accept a larger size for a volume.

        Raises:
            VolumeNotFound: no such volume.
            VolumeBusy, VolumeUnusable: the volume is not available.
            ShrinkRefused, SizeLimitExceeded: the volume cannot have the new size.
            QuotaExceeded: the project may not have so many bytes.
            BackendOvercommitted: its backend may not promise so much.
        """
        request = ExpandRequest(volume_id, growth, origin.actor, tracing.capture())
        if origin.idempotency is None and (batched := await self._batches.expand(request)):
            return await self._log_and_dispatch(batched)
        # With a key, or if the batch has left it out, the request is accepted alone.
        async with accepting(self._database, origin) as accepted:
            volumes, project_id = VolumeRepository(accepted.session), origin.actor.project_id
            volume = await volumes.acquire(volume_id, project_id, VolumeState.EXPANDING, uuid7())
            volume.growing_to = to_size = growth.target(volume.size)
            accepted.room.take(bytes=to_size - volume.size)
            accepted.last_check = partial(self._directory.require_room, volume.backend, to_size - volume.size)
            grown = await grown_offline(accepted.session, [volume])
            params = {"to_size": to_size, **growth_params(grown.get(volume.id))}
            job = self._job(JobKind.VOLUME_EXPAND, volume, params, created_by=origin.caller)
            accepted.job = await JobRepository(accepted.session).add(job)
        return await self._dispatch(job)

    async def request_delete(self, volume_id: UUID, *, origin: RequestOrigin = ANONYMOUS) -> Job:
        """Accept the deletion of a volume, which may be in the state ``error``.

        Raises:
            VolumeNotFound: no such volume.
            VolumeBusy: a job holds it.
            VolumeHasSnapshots: its snapshots depend on it.
        """
        return await self.request(JobKind.VOLUME_DELETE, volume_id, origin=origin)

    async def request(self, kind: JobKind, volume_id: UUID, *, origin: RequestOrigin = ANONYMOUS) -> Job:
        """Accept an operation on a volume that has no parameters.

        Raises:
            VolumeNotFound: no such volume.
            VolumeBusy, VolumeUnusable: the operation is not possible in its state.
            VolumeHasSnapshots: it would delete a volume that has snapshots.
        """
        transition = OPERATIONS[kind].volume
        if transition is None:
            raise RuntimeError(f"{kind} acquires no volume")
        async with accepting(self._database, origin) as accepted:
            volumes, project_id = VolumeRepository(accepted.session), origin.actor.project_id
            volume = await volumes.acquire(volume_id, project_id, transition.busy, uuid7())
            if transition.success is None:
                await self._refuse_delete(accepted.session, volume_id)
            job = self._job(kind, volume, {}, created_by=origin.caller)
            accepted.job = await JobRepository(accepted.session).add(job)
        return await self._dispatch(job)

    async def _new_volume(self, new: NewVolume, project_id: UUID) -> Volume:
        backend = await self._directory.find(new.backend)
        if new.size is None:
            raise Invalid("A volume needs a size.", field="size")
        if (filesystem := new.columns.get("filesystem")) is not None:
            backend.require_filesystem(filesystem, new.size)
        return new.to_row(project_id=project_id, backend=backend.name, size=new.size, job_id=uuid7())

    def _job(self, kind: JobKind, volume: Volume | VolumeRow, params: Payload, **columns: Any) -> Job:
        return job_for(kind, params, volume, max_attempts=self._max_attempts, **columns)

    async def _log_and_dispatch(self, job: Job) -> Job:
        """Log and dispatch a job that was accepted in a batch, which logs nothing itself."""
        log_accepted(job)
        return await self._dispatch(job)

    async def _dispatch(self, job: Job) -> Job:
        await self._queue.dispatch([job.message])
        return job
