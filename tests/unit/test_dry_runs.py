"""Dry runs: few at once, and a short queue, so that they leave the process to other requests."""

import asyncio
from typing import Any, cast
from uuid import uuid4

import pytest
from sqlalchemy.dialects import postgresql

from domain.bulk import service as service_module
from domain.bulk.expand import BulkExpandRequest, GrowthPolicy
from domain.bulk.ledger import selected_volumes
from domain.bulk.preview import Plan
from domain.bulk.requests import Selection
from domain.bulk.service import BulkService
from domain.db.base import DEFAULT_PROJECT
from domain.errors import TooManyDryRuns
from domain.volumes.model import Volume
from tests.unit.worker_fakes import until

REQUEST = BulkExpandRequest(GrowthPolicy(by=4096))
EMPTY = Plan(0, 0, 0, None, [])


class Planner:
    """Plans nothing, when it is told to go on; counts those that plan at the same time."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.running = self.most = 0

    async def preview(self, *_: Any) -> Plan:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.go_on.wait()
        finally:
            self.running -= 1
        return EMPTY


@pytest.fixture
def planner(monkeypatch: pytest.MonkeyPatch) -> Planner:
    planner = Planner()
    monkeypatch.setattr(service_module, "preview", planner.preview)
    return planner


@pytest.fixture
def bulk() -> BulkService:
    nothing = cast("Any", None)
    return BulkService(nothing, nothing, {}, max_attempts=1, max_concurrent=100, busy_seconds=1)


async def test_of_forty_dry_runs_two_run_eight_wait_and_the_others_are_refused(
    bulk: BulkService, planner: Planner
) -> None:
    dry_runs = [asyncio.ensure_future(bulk.preview(REQUEST, project_id=DEFAULT_PROJECT)) for _ in range(40)]
    await until(lambda: sum(dry_run.done() for dry_run in dry_runs) == 30)
    planner.go_on.set()
    results = await asyncio.gather(*dry_runs, return_exceptions=True)

    assert planner.most == 2
    assert results[:10] == [EMPTY] * 10
    assert {type(result) for result in results[10:]} == {TooManyDryRuns}


async def test_dry_runs_that_end_in_any_way_make_room_for_others(bulk: BulkService, planner: Planner) -> None:
    dry_runs = [asyncio.ensure_future(bulk.preview(REQUEST, project_id=DEFAULT_PROJECT)) for _ in range(10)]
    await until(lambda: planner.running == 2)
    for dry_run in dry_runs:  # some run, others wait
        dry_run.cancel()
    await asyncio.wait(dry_runs)
    planner.go_on.set()

    assert await asyncio.gather(*(bulk.preview(REQUEST, project_id=DEFAULT_PROJECT) for _ in range(10))) == [EMPTY] * 10


def test_ten_thousand_ids_are_one_parameter() -> None:
    query = selected_volumes(DEFAULT_PROJECT, Selection(tuple(uuid4() for _ in range(10_000))), Volume.id)
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]

    assert len(str(query.compile(dialect=dialect, compile_kwargs={"render_postcompile": True}))) < 1000
