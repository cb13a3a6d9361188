"""Requests that come at the same moment, accepted by one transaction: then each costs little more than its rows.

Nobody waits here for somebody else's lock: who would have to, for a volume that is locked or a name that is just being
taken, is told to go alone. A request under an Idempotency-Key, which may wait for its first answer, does so anyway.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple
from uuid import UUID

from uuid_utils.compat import uuid7

from domain.database import Database, is_outage, was_locked
from domain.errors import DatabaseUnavailable, Refused
from domain.grouped import Grouped
from domain.jobs.model import Job
from domain.jobs.repository import JobRepository
from domain.volumes.growth import Growth
from domain.volumes.jobs import job_on, volume_of
from domain.volumes.model import Volume
from domain.volumes.repository import Held, VolumeRepository, name_taken, require_ready
from domain.volumes.states import VolumeState

#: So many requests are accepted by one transaction.
_MOST: Final = 100


class _Creation(NamedTuple):
    """A volume that is wanted, and the job that is to make it."""

    volume: Volume
    job: Job


class _Expansion(NamedTuple):
    """How much larger a volume is wanted, and by whom."""

    volume_id: UUID
    growth: Growth
    caller: str | None


class Intake:
    """Accepts, for one process, what many ask of volumes."""

    def __init__(self, database: Database, *, max_attempts: int) -> None:
        self._database = database
        self._max_attempts = max_attempts
        self._creations = Grouped(self._create_all, most=_MOST, is_common=is_outage)
        self._expansions = Grouped(self._expand_all, most=_MOST, is_common=is_outage)

    async def create(self, volume: Volume, job: Job) -> bool:
        """Accept a new volume with its job; False: go alone.

        Raises:
            NameTaken: another volume has the name.
        """
        return await self._creations(_Creation(volume, job))

    async def _create_all(self, wanted: Sequence[_Creation]) -> Sequence[bool | Exception]:
        try:
            async with self._database.transaction() as session:
                added = await VolumeRepository(session).add_free([one.volume for one in wanted])
                if added:
                    await JobRepository(session).add_many([one.job for one in wanted if one.volume.id in added])
        except DatabaseUnavailable as error:
            if not was_locked(error):
                raise
            return [False] * len(wanted)
        return [one.volume.id in added or name_taken(one.volume.name) for one in wanted]

    async def expand(self, volume_id: UUID, growth: Growth, caller: str | None) -> Job | None:
        """Accept a larger size for a volume; None: go alone.

        Raises:
            VolumeBusy, VolumeUnusable: it is not available.
            ShrinkRefused, SizeLimitExceeded: the new size is out of the question.
        """
        return await self._expansions(_Expansion(volume_id, growth, caller))

    async def _expand_all(self, wanted: Sequence[_Expansion]) -> Sequence[Job | Exception | None]:
        async with self._database.transaction() as session:
            volumes = VolumeRepository(session)
            free = {held.id: held for held in await volumes.lock_free({one.volume_id for one in wanted})}
            answers = [self._take(free, one) for one in wanted]
            jobs = [answer for answer in answers if isinstance(answer, Job)]
            if jobs:
                await volumes.take_each({volume_of(job): job.id for job in jobs}, VolumeState.EXPANDING)
                await JobRepository(session).add_many(jobs)
        return answers

    def _take(self, free: dict[UUID, Held], wanted: _Expansion) -> Job | Refused | None:
        """Decide on one request, and remember for those that follow who has the volume now."""
        held = free.get(wanted.volume_id)
        if held is None:  # locked, or there is none
            return None
        try:
            require_ready(held, VolumeState.EXPANDING)
            to_size = wanted.growth.target(held.size)
        except Refused as refusal:
            return refusal
        taken = free[held.id] = held.taken(VolumeState.EXPANDING, uuid7())
        return job_on(
            taken,
            "volume.expand",
            {"to_size": to_size},
            max_attempts=self._max_attempts,
            created_by=wanted.caller,
        )
