"""Dry runs read the volumes in pages, between which the process does other work."""

import asyncio
from collections import Counter

import pytest

from domain.bulk.expand import BulkExpandRequest
from domain.bulk.preview import Preview
from domain.db.base import DEFAULT_PROJECT
from domain.services import Services
from domain.tasks import in_background
from tests.integration.bulk_builders import BY_ONE
from tests.support.bulk import add_volumes


async def test_dry_run_lets_others_run_after_every_five_hundred_volumes(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    await add_volumes(services, 2_500, backend="null")
    step = 0
    volumes_of_step = Counter[int]()
    decide = Preview.of

    async def count_steps() -> None:
        nonlocal step
        while True:
            step += 1
            await asyncio.sleep(0)

    def count_and_decide(*arguments: object) -> Preview:
        volumes_of_step[step] += 1
        return decide(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Preview, "of", count_and_decide)
    async with in_background(count_steps()):
        plan = await services.bulk.preview(BulkExpandRequest(BY_ONE), project_id=DEFAULT_PROJECT)

    assert (plan.total, plan.grows, len(plan.items)) == (2_500, 2_500, 1_000)
    assert max(volumes_of_step.values()) <= 500
