"""The history of volumes: which samples are taken, by how many workers at once, and how long they are kept."""

import asyncio
from datetime import timedelta

import httpx
import pytest

from domain.services import Services
from domain.volumes.history.repository import prune_samples
from tests.integration.job_builders import MIB, a_volume, sql

GIB = 1024 * MIB


async def measure(services: Services, *, used: int | None, size: int = GIB) -> None:
    await sql(services, "UPDATE volumes SET used = :used, size = :size", used=used, size=size)


async def make_older(services: Services) -> None:
    """Make each sample an hour older, so that the next one is of another hour."""
    await sql(services, "UPDATE volume_samples SET at = at - interval '1 hour'")


async def samples(services: Services) -> list[tuple[int, int | None]]:
    rows = await sql(services, "SELECT size, used FROM volume_samples ORDER BY at")
    return [(row[0], row[-1]) for row in rows]


async def test_sample_is_taken_when_the_size_changes_or_a_hundredth_of_it_is_used_more(services: Services) -> None:
    await a_volume(services)
    taken = []
    for used, size in ((None, GIB), (None, GIB), (0, GIB), (GIB // 101, GIB), (GIB // 99, GIB), (GIB // 99, 2 * GIB)):
        await measure(services, used=used, size=size)
        taken.append(await services.volume_history.take_samples())
        await make_older(services)

    assert taken == [1, 0, 1, 0, 1, 1]
    assert await samples(services) == [(GIB, None), (GIB, 0), (GIB, GIB // 99), (2 * GIB, GIB // 99)]


async def test_sample_of_the_running_hour_is_replaced(services: Services) -> None:
    await a_volume(services)
    for used in (0, GIB // 2):
        await measure(services, used=used)
        await services.volume_history.take_samples()

    assert await samples(services) == [(GIB, GIB // 2)]
    assert await sql(services, "SELECT count(*) FROM volume_samples WHERE date_trunc('hour', at, 'UTC') <> at") == [
        (0,)
    ]


async def test_workers_that_take_samples_at_once_take_each_of_them_once(services: Services) -> None:
    for number in range(20):
        await a_volume(services, name=f"volume-{number}")
    await asyncio.gather(*(services.volume_history.take_samples() for _ in range(5)))

    assert await sql(services, "SELECT count(*) FROM volume_samples") == [(20,)]


async def test_volumes_are_taken_in_batches(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(7):
        await a_volume(services, name=f"volume-{number}")
    monkeypatch.setattr("domain.volumes.history.service._BATCH", 3)

    assert await services.volume_history.take_samples() == 7


async def test_history_ends_with_what_is_so_now(services: Services, client: httpx.AsyncClient) -> None:
    volume = await a_volume(services)
    await measure(services, used=0)
    await services.volume_history.take_samples()
    await make_older(services)
    await measure(services, used=4096, size=2 * GIB)
    answer = (await client.get(f"/api/v1/volumes/{volume.id}/history")).json()

    assert [(one["size"], one["used"]) for one in answer["samples"]] == [(GIB, 0), (2 * GIB, 4096)]


async def test_old_samples_are_pruned(services: Services) -> None:
    await a_volume(services)
    await services.volume_history.take_samples()
    await sql(services, "UPDATE volume_samples SET at = at - interval '31 days'")
    await measure(services, used=0)
    await services.volume_history.take_samples()
    async with services.database.transaction() as session:
        pruned = await prune_samples(session, age=timedelta(days=30))

    assert (pruned.rows, pruned.more) == (1, False)
    assert await samples(services) == [(GIB, 0)]
