"""Requests that come at the same moment, accepted by one transaction: then each costs little more than its rows.

Nobody waits here for somebody else's lock: who would have to, for a volume that is locked or a name that is just being
taken, is told to go alone. A request under an Idempotency-Key, which may wait for its first answer, does so anyway.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple
from uuid import UUID

from uuid_utils.compat import uuid7

from domain.batching import Batcher
from domain.db.database import Database, is_unavailable, was_lock_timeout
from domain.errors import DatabaseUnavailable, Refused
from domain.jobs.model import Job
from domain.jobs.store.jobs import JobRepository
from domain.volumes.growth import Growth
from domain.volumes.model import Volume
from domain.volumes.operations import job_on, volume_of
from domain.volumes.repository import LockedVolume, VolumeRepository, name_taken, require_ready
from domain.volumes.states import VolumeState

#: So many requests are accepted by one transaction.
MAX_BATCH: Final = 100


class _CreateRequest(NamedTuple):
    """A volume that is wanted, and the job that is to make it."""

    volume: Volume
    job: Job


class _ExpandRequest(NamedTuple):
    """How much larger a volume is wanted, and by whom."""

    volume_id: UUID
    growth: Growth
    caller: str | None


class RequestBatcher:
    """Accepts, for one process, what many ask of volumes."""

    def __init__(self, database: Database, *, max_attempts: int) -> None:
        self._database = database
        self._max_attempts = max_attempts
        self._creates = Batcher(self._create_batch, max_batch=MAX_BATCH, fails_all=is_unavailable)
        self._expands = Batcher(self._expand_batch, max_batch=MAX_BATCH, fails_all=is_unavailable)

    async def create(self, volume: Volume, job: Job) -> bool:
        """Accept a new volume with its job; False: go alone.

        Raises:
            NameTaken: another volume has the name.
        """
        return await self._creates(_CreateRequest(volume, job))

    async def _create_batch(self, requests: Sequence[_CreateRequest]) -> Sequence[bool | Exception]:
        try:
            async with self._database.transaction() as session:
                added = await VolumeRepository(session).add_with_free_names([one.volume for one in requests])
                if added:
                    await JobRepository(session).add_many([one.job for one in requests if one.volume.id in added])
        except DatabaseUnavailable as error:
            if not was_lock_timeout(error):
                raise
            return [False] * len(requests)
        return [one.volume.id in added or name_taken(one.volume.name) for one in requests]

    async def expand(self, volume_id: UUID, growth: Growth, caller: str | None) -> Job | None:
        """Accept a larger size for a volume; None: go alone.

        Raises:
            VolumeBusy, VolumeUnusable: it is not available.
            ShrinkRefused, SizeLimitExceeded: the new size is out of the question.
        """
        return await self._expands(_ExpandRequest(volume_id, growth, caller))

    async def _expand_batch(self, requests: Sequence[_ExpandRequest]) -> Sequence[Job | Exception | None]:
        async with self._database.transaction() as session:
            volumes = VolumeRepository(session)
            free = {held.id: held for held in await volumes.lock_available({one.volume_id for one in requests})}
            answers = [self._acquire(free, one) for one in requests]
            jobs = [answer for answer in answers if isinstance(answer, Job)]
            if jobs:
                await volumes.acquire_each({volume_of(job): job.id for job in jobs}, VolumeState.EXPANDING)
                await JobRepository(session).add_many(jobs)
        return answers

    def _acquire(self, free: dict[UUID, LockedVolume], requests: _ExpandRequest) -> Job | Refused | None:
        """Decide on one request, and remember for those that follow who has the volume now."""
        held = free.get(requests.volume_id)
        if held is None:  # locked, or there is none
            return None
        try:
            require_ready(held, VolumeState.EXPANDING)
            to_size = requests.growth.target(held.size)
        except Refused as refusal:
            return refusal
        taken = free[held.id] = held.acquired_by(VolumeState.EXPANDING, uuid7())
        return job_on(
            taken,
            "volume.expand",
            {"to_size": to_size},
            max_attempts=self._max_attempts,
            created_by=requests.caller,
        )
