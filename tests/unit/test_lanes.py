"""What a worker does in the background while it works on a lane, and what it remembers between slices."""

import asyncio
from typing import cast
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from domain.bulk.chunks import LaneSteps
from domain.bulk.model import Lane
from domain.errors import DatabaseUnavailable
from domain.jobs.attempt import ClaimedJob
from domain.storage.context import Grant
from tests.unit.worker_fakes import a_job
from worker import lanes as lanes_module
from worker.lanes import LaneRun


class FailingChunks:
    """The first checks for cancellation fail, each with the next error; then the job is cancelled."""

    def __init__(self, *errors: Exception) -> None:
        self.lane = a_lane()
        self._errors = [*errors]

    async def is_cancelled(self) -> bool:
        if self._errors:
            raise self._errors.pop(0)
        return True


def a_lane() -> Lane:
    return Lane.from_job(ClaimedJob.from_row(a_job("bulk.lane", parent_id=uuid7())))


def a_run(*errors: Exception) -> LaneRun:
    return LaneRun(cast("LaneSteps", FailingChunks(*errors)), cast("Grant", None), {})


@pytest.mark.parametrize("error", [DatabaseUnavailable(), ValueError("a bug")])
async def test_failed_check_for_cancellation_is_repeated(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr(lanes_module, "_CANCEL_POLL_SECONDS", 0)
    run = a_run(error)
    async with asyncio.timeout(5):
        await run.poll_cancellation()

    assert run._cancelled.is_set()


def test_number_of_remembered_chunk_sizes_is_limited() -> None:
    limits: dict[UUID, int] = {}
    active = uuid7()
    for _ in range(10 * lanes_module._MAX_REMEMBERED):
        limits.pop(active, None)  # as its next slice does
        lanes_module._remember(limits, a_lane()._replace(job_id=active), 7)
        lanes_module._remember(limits, a_lane(), 7)

    assert len(limits) == lanes_module._MAX_REMEMBERED
    assert active in limits
