"""Takes samples in the background, and returns those of a volume."""

import asyncio
from collections.abc import Sequence
from typing import Final
from uuid import UUID

import structlog

from domain.db.database import Database
from domain.errors import CisternError
from domain.volumes.history.model import Sample
from domain.volumes.history.repository import SampleRepository

#: Time between two runs, in seconds.
_INTERVAL_SECONDS: Final = 600.0
#: Maximum number of volumes whose samples are taken in one transaction.
_BATCH: Final = 5000
#: Maximum number of samples that are returned: a month has 744 hours.
MAX_SAMPLES: Final = 2000
_NO_ID: Final = UUID(int=0)

log = structlog.get_logger(__name__)


class VolumeHistory:
    """Takes the samples of all volumes, and reads those of one."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def run_forever(self) -> None:
        """Take samples every ten minutes; a failure is logged, and the next run tries again."""
        while True:
            try:
                await self.take_samples()
            except CisternError as error:
                log.warning("history.not_taken", error=error.message)
            except Exception:
                log.exception("history.not_taken")
            await asyncio.sleep(_INTERVAL_SECONDS)

    async def take_samples(self) -> int:
        """Take a sample of each volume that has changed since its last one. Returns their number.

        Raises:
            DatabaseUnavailable: PostgreSQL does not answer.
        """
        count, after = 0, _NO_ID
        while True:
            async with self._database.transaction() as session:
                samples = SampleRepository(session)
                ids = await samples.volumes_after(after, _BATCH)
                if not ids:
                    return count
                count += await samples.take(ids)
            after = ids[-1]

    async def samples_of(self, volume_id: UUID) -> Sequence[Sample]:
        """Return the samples of a volume, oldest first; the newest `MAX_SAMPLES` if there are more.

        Raises:
            DatabaseUnavailable: PostgreSQL does not answer.
        """
        async with self._database.transaction() as session:
            return await SampleRepository(session).of(volume_id, MAX_SAMPLES)
