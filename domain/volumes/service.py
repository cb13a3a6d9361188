"""Requests about volumes: read and change them, and accept jobs that create, expand or delete one.

Concurrent requests to create or expand a volume are accepted in one transaction, so that each costs little more than
its rows. A batch must not wait long for locks: one locked row would delay all of its requests.

1. Expansions never wait: a request for a locked volume is accepted in a transaction of its own.
2. Creations wait at most 100 ms for a name that an open transaction has just inserted; then each of them
   is accepted in a transaction of its own.
3. Requests of a project with limits have batches of their own: these wait for the project's row.
4. Requests with an Idempotency-Key are never batched, since they may have to wait for the first answer to their key.
5. Requests for which the backend has no room are never batched, since that is checked after everything else.
"""

from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession
from uuid_utils.compat import uuid7

from domain import tracing
from domain.audit.model import NOBODY, Actor, new_entry
from domain.audit.repository import add_entries
from domain.batching import Batcher
from domain.db.database import Database, failed_transiently, was_lock_timeout
from domain.db.pagination import Page, PageRequest
from domain.errors import DatabaseUnavailable, Invalid, QuotaExceeded, Refused
from domain.jobs.acceptance import ANONYMOUS, RequestOrigin, accepting, entry_of, log_accepted, rooms_of
from domain.jobs.attempt import Payload
from domain.jobs.kinds import JobKind
from domain.jobs.model import Job
from domain.jobs.store.jobs import JobRepository
from domain.jobs.transport.job_queue import JobQueue
from domain.operations import OPERATIONS, VolumeState, job_for
from domain.projects.quota import Room
from domain.storage.directory import BackendDirectory
from domain.storage_work import volume_of
from domain.volumes.batches import CreateRequest, ExpandRequest, beyond_limits, limited_project
from domain.volumes.filesystems.growth import grown_offline, growth_params
from domain.volumes.model import Growth, LockedVolume, Volume, rounded_up
from domain.volumes.repository import Acquisition, VolumeFilter, VolumeRepository, name_taken

#: Maximum number of requests accepted in one transaction.
MAX_BATCH: Final = 100

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
        #: By the project, for those with limits; all others share that of None.
        self._create_batchers = defaultdict[UUID | None, Batcher[CreateRequest, bool]](
            lambda: Batcher(self._create_batch, max_batch=MAX_BATCH, fails_all=failed_transiently)
        )
        self._expand_batchers = defaultdict[UUID | None, Batcher[ExpandRequest, Job | None]](
            lambda: Batcher(self._expand_batch, max_batch=MAX_BATCH, fails_all=failed_transiently)
        )

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
        request, batcher = CreateRequest(volume, job, origin.actor), self._create_batchers[limited_project(origin)]
        has_room = self._directory.has_room(volume.backend, volume.size)
        if has_room and origin.idempotency is None and await batcher(request):
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
        batcher = self._expand_batchers[limited_project(origin)]
        if origin.idempotency is None and (batched := await batcher(request)):
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

    async def _create_batch(self, requests: Sequence[CreateRequest]) -> Sequence[bool | Exception]:
        """Insert volumes and their jobs. A result is False if the request must be accepted on its own."""
        refused: dict[UUID, QuotaExceeded] = {}
        try:
            async with self._database.transaction() as session:
                rooms = await rooms_of(session, [request.actor for request in requests])
                refused = beyond_limits(requests, rooms)
                volumes = [request.volume for request in requests if request.volume.id not in refused]
                added = await VolumeRepository(session).add_with_free_names(volumes) if volumes else set()
                accepted = [request for request in requests if request.volume.id in added]
                if accepted:
                    jobs = [request.job for request in accepted]
                    entries = [entry_of(request.job, request.actor) for request in accepted]
                    await JobRepository(session).add_many(jobs, entries)
        except DatabaseUnavailable as error:
            if not was_lock_timeout(error):
                raise
            return [False] * len(requests)
        outcomes: dict[UUID, bool | Exception] = {one.id: one.id in added or name_taken(one.name) for one in volumes}
        # Those whose names are taken leave their room to others after all.
        outcomes |= dict.fromkeys(refused, False) if len(added) < len(volumes) else refused
        return [outcomes[request.volume.id] for request in requests]

    async def _expand_batch(self, requests: Sequence[ExpandRequest]) -> Sequence[Job | Exception | None]:
        """Acquire volumes and insert their jobs. A result is None if the request must be accepted on its own."""
        async with self._database.transaction() as session:
            rooms = await rooms_of(session, [request.actor for request in requests])
            volumes = VolumeRepository(session)
            rows = await volumes.lock_without_waiting({request.volume_id for request in requests})
            locked = {volume.id: volume for volume in rows}
            grown = await grown_offline(session, rows)
            results = [self._decide(locked, grown, request, rooms) for request in requests]
            accepted = [(job, one.actor) for job, one in zip(results, requests, strict=True) if isinstance(job, Job)]
            if accepted:
                jobs = [job for job, _ in accepted]
                acquisitions = [Acquisition(volume_of(job), job.id, job.params["to_size"]) for job in jobs]
                await volumes.acquire_each(acquisitions, VolumeState.EXPANDING)
                await JobRepository(session).add_many(jobs, [entry_of(job, actor) for job, actor in accepted])
        return results

    def _decide(
        self,
        locked: dict[UUID, LockedVolume],
        grown: Mapping[UUID, str],
        request: ExpandRequest,
        rooms: Mapping[UUID, Room],
    ) -> Job | Refused | None:
        """Decide on one request. Update ``locked``, so that later requests of the batch find the volume busy."""
        volume, project_id = locked.get(request.volume_id), request.actor.project_id
        if volume is None or volume.project_id != project_id:  # locked by another transaction, or does not exist
            return None
        try:
            acquired = volume.after_acquisition(VolumeState.EXPANDING, uuid7())
            to_size = request.growth.target(volume.size)
            if not self._directory.has_room(volume.backend, to_size - volume.size):
                return None
            if project_id in rooms:
                rooms[project_id].take(bytes=to_size - volume.size, queued_jobs=1)
        except Refused as refusal:
            return refusal
        locked[volume.id] = acquired
        params = {"to_size": to_size, **growth_params(grown.get(volume.id))}
        with tracing.attached(request.trace):
            return self._job(JobKind.VOLUME_EXPAND, acquired, params, created_by=request.actor.name)

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

    def _job(self, kind: JobKind, volume: Volume | LockedVolume, params: Payload, **columns: Any) -> Job:
        return job_for(kind, params, volume, max_attempts=self._max_attempts, **columns)

    async def _log_and_dispatch(self, job: Job) -> Job:
        """Log and dispatch a job that was accepted in a batch, which logs nothing itself."""
        log_accepted(job)
        return await self._dispatch(job)

    async def _dispatch(self, job: Job) -> Job:
        await self._queue.dispatch([job.message])
        return job
