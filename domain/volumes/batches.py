"""Accepts concurrent requests to create or expand a volume in batches, so that each costs little more than its rows.

One statement writes a batch: the volumes, their jobs and the entries of the audit log. A batch must not wait long for
locks: one locked row would delay all of its requests.

1. Expansions never wait: a request for a volume that is locked, or has just changed, is accepted in a transaction of
   its own.
2. Creations wait at most 100 ms for a name that an open transaction has just inserted; then each of them
   is accepted in a transaction of its own.
3. Requests of a project with limits have batches of their own: these wait for the project's row, and are transactions.
4. Requests with an Idempotency-Key are never batched, since they may have to wait for the first answer to their key.
5. Requests for which the backend has no room are never batched, since that is checked after everything else.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from uuid_utils.compat import uuid7

from domain import tracing
from domain.audit.model import Actor
from domain.batching import Batcher
from domain.db.database import Database, failed_transiently, was_lock_timeout
from domain.db.sql import as_array, as_arrays, as_json, as_rows
from domain.errors import DatabaseUnavailable, QuotaExceeded, Refused
from domain.jobs.acceptance import entry_of, rooms_of
from domain.jobs.kinds import JobKind
from domain.jobs.model import Job
from domain.operations import VolumeState, job_for
from domain.projects.quota import Room
from domain.storage.directory import BackendDirectory
from domain.volumes import statements
from domain.volumes.filesystems.growth import grown_offline, growth_params
from domain.volumes.model import Growth, Volume, VolumeRow
from domain.volumes.repository import name_taken

#: Maximum number of requests in one batch.
MAX_BATCH: Final = 100


class CreateRequest(NamedTuple):
    """A volume to create, the job that creates it, and who asks for it."""

    volume: Volume
    job: Job
    actor: Actor


class ExpandRequest(NamedTuple):
    """A volume to expand, by how much, who asks for it, and in which trace."""

    volume_id: UUID
    growth: Growth
    actor: Actor
    trace: object


class Expansion(NamedTuple):
    """A job that expands a volume, the volume as it was read, and who asks for it."""

    job: Job
    volume: VolumeRow
    actor: Actor


class _Expected(NamedTuple):
    """The version of a volume that is to be acquired, its job, and the size in bytes that the job gives it."""

    id: UUID
    version: int
    job_id: UUID
    growing_to: int


class RequestBatches:
    """The batches of this process."""

    def __init__(self, database: Database, directory: BackendDirectory, *, max_attempts: int) -> None:
        self._database = database
        self._directory = directory
        self._max_attempts = max_attempts
        #: By the project, for those with limits; all others share that of None.
        self._create_batchers = defaultdict[UUID | None, Batcher[CreateRequest, bool]](
            lambda: Batcher(self._create_batch, max_batch=MAX_BATCH, fails_all=failed_transiently)
        )
        self._expand_batchers = defaultdict[UUID | None, Batcher[ExpandRequest, Job | None]](
            lambda: Batcher(self._expand_batch, max_batch=MAX_BATCH, fails_all=failed_transiently)
        )

    async def create(self, request: CreateRequest) -> bool:
        """Accept a new volume; return False if the request must be accepted on its own.

        Raises:
            QuotaExceeded: the project may not have it.
            NameTaken: another volume of the project has the name.
        """
        has_room = self._directory.has_room(request.volume.backend, request.volume.size)
        return has_room and await self._create_batchers[_limited_project(request.actor)](request)

    async def expand(self, request: ExpandRequest) -> Job | None:
        """Accept a larger size for a volume; return None if the request must be accepted on its own.

        Raises:
            VolumeBusy, VolumeUnusable: the volume is not available.
            ShrinkRefused, SizeLimitExceeded: the volume cannot have the new size.
            QuotaExceeded: the project may not have so many bytes.
        """
        return await self._expand_batchers[_limited_project(request.actor)](request)

    async def _create_batch(self, requests: Sequence[CreateRequest]) -> Sequence[bool | Exception]:
        """Insert volumes and their jobs. False stands for a request that must be accepted alone."""
        try:
            async with self._connection(requests) as connection:
                rooms = await rooms_of(connection, [request.actor for request in requests])
                refused = _beyond_limits(requests, rooms)
                possible = [request for request in requests if request.volume.id not in refused]
                accepted = {job.volume_id for job in await accept_creations(connection, possible)}
        except DatabaseUnavailable as error:
            if not was_lock_timeout(error):
                raise
            return [False] * len(requests)
        outcomes: dict[UUID, bool | Exception] = {
            volume.id: volume.id in accepted or name_taken(volume.name) for volume, *_ in possible
        }
        # Those whose names are taken leave their room to others after all.
        outcomes |= dict.fromkeys(refused, False) if len(accepted) < len(possible) else refused
        return [outcomes[request.volume.id] for request in requests]

    async def _expand_batch(self, requests: Sequence[ExpandRequest]) -> Sequence[Job | Exception | None]:
        """Acquire volumes and insert their jobs. None stands for a request that must be accepted alone.

        The volumes are read, and then written if they have not changed since: they are not locked in between.
        """
        async with self._connection(requests) as connection:
            rooms = await rooms_of(connection, [request.actor for request in requests])
            volumes = await read_volumes(connection, {request.volume_id for request in requests})
            grown = await grown_offline(connection, volumes.values())
            current = dict(volumes)
            results = [self._decide(current, grown, request, rooms) for request in requests]
            expansions = [
                Expansion(job, volumes[request.volume_id], request.actor)
                for job, request in zip(results, requests, strict=True)
                if isinstance(job, Job)
            ]
            accepted = await accept_expansions(connection, expansions)
        changed = {expansion.volume.id for expansion in expansions} - {job.volume_id for job in accepted}
        return [
            None if request.volume_id in changed else result for result, request in zip(results, requests, strict=True)
        ]

    def _connection(
        self, requests: Sequence[CreateRequest | ExpandRequest]
    ) -> AbstractAsyncContextManager[AsyncConnection | AsyncSession]:
        """Open what writes a batch: a transaction only if the project of its requests has limits."""
        if requests[0].actor.is_limited:
            return self._database.transaction()
        return self._database.autocommit()

    def _decide(
        self,
        volumes: dict[UUID, VolumeRow],
        grown: Mapping[UUID, str],
        request: ExpandRequest,
        rooms: Mapping[UUID, Room],
    ) -> Job | Refused | None:
        """Decide on one request. Update ``volumes``, so that later requests of the batch find the volume busy."""
        volume, project_id = volumes.get(request.volume_id), request.actor.project_id
        if volume is None or volume.project_id != project_id:
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
        volumes[volume.id] = acquired
        params = {"to_size": to_size, **growth_params(grown.get(volume.id))}
        with tracing.attached(request.trace):
            return job_for(
                JobKind.VOLUME_EXPAND, params, acquired, max_attempts=self._max_attempts, created_by=request.actor.name
            )


async def read_volumes(
    connection: AsyncSession | AsyncConnection, volume_ids: Collection[UUID]
) -> Mapping[UUID, VolumeRow]:
    """Read those of these volumes that exist, and do not lock them."""
    rows = await connection.execute(statements.READ, {"ids": as_array(volume_ids)})
    return {row.id: VolumeRow(*row) for row in rows}


async def accept_creations(
    connection: AsyncSession | AsyncConnection, requests: Sequence[CreateRequest]
) -> Sequence[Job]:
    """Insert those of these volumes whose names are free, with their jobs; return the jobs.

    Of two volumes with the same name the first is inserted. If an open transaction has inserted one of the names, the
    statement waits for it for up to 100 ms, which delays the whole batch. The caller must dispatch the jobs.

    Raises:
        DatabaseUnavailable: that transaction has not ended within 100 ms (see `was_lock_timeout`).
    """
    if not requests:
        return []
    jobs = [request.job for request in requests]
    entries = as_json([entry_of(request.job, request.actor) for request in requests])
    params = {"volumes": as_rows(request.volume for request in requests), "jobs": as_rows(jobs), "entries": entries}
    return _accepted(jobs, await connection.execute(statements.ACCEPT_CREATIONS, params))


async def accept_expansions(
    connection: AsyncSession | AsyncConnection, expansions: Sequence[Expansion]
) -> Sequence[Job]:
    """Acquire those of these volumes that have not changed since they were read, and insert their jobs; return those.

    A locked volume counts as changed. The caller must dispatch the jobs.
    """
    if not expansions:
        return []
    jobs = [expansion.job for expansion in expansions]
    expected = [_Expected(one.id, one.version, job.id, job.params["to_size"]) for job, one, _ in expansions]
    entries = as_json([entry_of(job, actor) for job, _, actor in expansions])
    params = {**as_arrays(expected), "jobs": as_rows(jobs), "entries": entries}
    return _accepted(jobs, await connection.execute(statements.ACCEPT_EXPANSIONS, params))


def _accepted(jobs: Sequence[Job], written: Iterable[Row[Any]]) -> Sequence[Job]:
    """Return the jobs that were written, with the times that PostgreSQL has given them."""
    moments = {row.id: row.created_at for row in written}
    accepted = [job for job in jobs if job.id in moments]
    for job in accepted:
        job.created_at = job.run_at = job.dispatched_at = moments[job.id]
    return accepted


def _limited_project(actor: Actor) -> UUID | None:
    """Return the project of a request if it has limits: only then are its requests accepted apart from others."""
    return actor.project_id if actor.is_limited else None


def _beyond_limits(requests: Sequence[CreateRequest], rooms: Mapping[UUID, Room]) -> dict[UUID, QuotaExceeded]:
    """Take the room for new volumes, and return the refusal of each for which none is left."""
    refused = {}
    for volume, _, actor in requests:
        try:
            if actor.project_id in rooms:
                rooms[actor.project_id].take(volumes=1, bytes=volume.size, queued_jobs=1)
        except QuotaExceeded as error:
            refused[volume.id] = error
    return refused
