"""Accepts concurrent requests in one transaction, so that each costs little more than its rows.

A batch must not wait long for locks: one locked row would delay all of its requests. Expansions never wait: a request
for a locked volume is returned to the caller, which accepts it in a transaction of its own. Creations wait at most
100 ms for a name that an open transaction has just inserted; then the whole batch is returned in the same way.

Requests with an Idempotency-Key are never batched, since they may have to wait for the first answer to their key.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple
from uuid import UUID

from uuid_utils.compat import uuid7

from domain.batching import Batcher
from domain.db.database import Database, failed_transiently, was_lock_timeout
from domain.errors import DatabaseUnavailable, Refused
from domain.jobs.kinds import JobKind
from domain.jobs.model import Job
from domain.jobs.store.jobs import JobRepository
from domain.operations import VolumeState, job_for, volume_of
from domain.volumes.growth import Growth
from domain.volumes.model import LockedVolume, Volume
from domain.volumes.repository import VolumeRepository, name_taken, require_move

#: Maximum number of requests accepted in one transaction.
MAX_BATCH: Final = 100


class _CreateRequest(NamedTuple):
    """A volume to create, and the job that creates it."""

    volume: Volume
    job: Job


class _ExpandRequest(NamedTuple):
    """A volume to expand, by how much, and for which caller."""

    volume_id: UUID
    growth: Growth
    caller: str | None


class RequestBatcher:
    """Batches the create and expand requests of one process."""

    def __init__(self, database: Database, *, max_attempts: int) -> None:
        self._database = database
        self._max_attempts = max_attempts
        self._creates = Batcher(self._create_batch, max_batch=MAX_BATCH, fails_all=failed_transiently)
        self._expands = Batcher(self._expand_batch, max_batch=MAX_BATCH, fails_all=failed_transiently)

    async def create(self, volume: Volume, job: Job) -> bool:
        """Insert a volume and its job. Return False if the caller must do so in its own transaction.

        Raises:
            NameTaken: another volume has the name.
        """
        return await self._creates(_CreateRequest(volume, job))

    async def _create_batch(self, requests: Sequence[_CreateRequest]) -> Sequence[bool | Exception]:
        try:
            async with self._database.transaction() as session:
                added = await VolumeRepository(session).add_with_free_names([request.volume for request in requests])
                if added:
                    await JobRepository(session).add_many([job for volume, job in requests if volume.id in added])
        except DatabaseUnavailable as error:
            if not was_lock_timeout(error):
                raise
            return [False] * len(requests)
        return [volume.id in added or name_taken(volume.name) for volume, _ in requests]

    async def expand(self, volume_id: UUID, growth: Growth, caller: str | None) -> Job | None:
        """Acquire a volume and insert its job. Return None if the caller must do so in its own transaction.

        Raises:
            VolumeBusy, VolumeUnusable: the volume is not available.
            ShrinkRefused, SizeLimitExceeded: the volume cannot have the new size.
        """
        return await self._expands(_ExpandRequest(volume_id, growth, caller))

    async def _expand_batch(self, requests: Sequence[_ExpandRequest]) -> Sequence[Job | Exception | None]:
        async with self._database.transaction() as session:
            volumes = VolumeRepository(session)
            rows = await volumes.lock_without_waiting({request.volume_id for request in requests})
            locked = {volume.id: volume for volume in rows}
            results = [self._decide(locked, request) for request in requests]
            jobs = [result for result in results if isinstance(result, Job)]
            if jobs:
                await volumes.acquire_each({volume_of(job): job.id for job in jobs}, VolumeState.EXPANDING)
                await JobRepository(session).add_many(jobs)
        return results

    def _decide(self, locked: dict[UUID, LockedVolume], request: _ExpandRequest) -> Job | Refused | None:
        """Decide on one request. Update ``locked``, so that later requests of the batch find the volume busy."""
        volume = locked.get(request.volume_id)
        if volume is None:  # locked by another transaction, or does not exist
            return None
        try:
            require_move(volume, VolumeState.EXPANDING)
            to_size = request.growth.target(volume.size)
        except Refused as refusal:
            return refusal
        acquired = locked[volume.id] = volume.acquired_by(VolumeState.EXPANDING, uuid7())
        params, most = {"to_size": to_size}, self._max_attempts
        return job_for(JobKind.VOLUME_EXPAND, params, acquired, max_attempts=most, created_by=request.caller)
