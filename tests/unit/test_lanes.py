"""What a worker does in the background while it works on a lane, and what it remembers between slices."""

import asyncio
from typing import cast

import pytest
from uuid_utils.compat import uuid7

from domain.bulk.chunks import Chunks
from domain.bulk.ledger import Lane
from domain.errors import DatabaseUnavailable
from domain.jobs.claimed import ClaimedJob
from tests.unit.worker_fakes import a_job
from worker import lanes as lanes_module
from worker.fair_share import FairShare
from worker.lanes import Lanes

UNLIMITED_SHARE = FairShare(lambda: 1)


class FailingChunks:
    """The first checks for cancellation fail, each with the next error; then the job is cancelled."""

    def __init__(self, *errors: Exception) -> None:
        self._errors = [*errors]

    async def is_cancelled(self, lane: Lane) -> bool:
        if self._errors:
            raise self._errors.pop(0)
        return True


@pytest.mark.parametrize("error", [DatabaseUnavailable(), ValueError("a bug")])
async def test_failed_check_for_cancellation_is_repeated(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr(lanes_module, "_CANCEL_POLL_SECONDS", 0)
    lane, cancelled = Lane.from_job(ClaimedJob.from_row(a_job("bulk.lane", parent_id=uuid7()))), asyncio.Event()
    async with asyncio.timeout(5):
        await Lanes(cast("Chunks", FailingChunks(error)), UNLIMITED_SHARE)._poll_cancellation(lane, cancelled)

    assert cancelled.is_set()


def test_number_of_remembered_chunk_sizes_is_limited() -> None:
    lanes, active = Lanes(cast("Chunks", FailingChunks()), UNLIMITED_SHARE), uuid7()
    for _ in range(10 * lanes_module._MAX_REMEMBERED):
        lanes._limits.pop(active, None)  # as its next slice does
        lanes._remember_limit(active, 7)
        lanes._remember_limit(uuid7(), 7)

    assert len(lanes._limits) == lanes_module._MAX_REMEMBERED
    assert active in lanes._limits
