"""What one chunk of a bulk job reads does not grow with the ledger, even when PostgreSQL has no statistics of it."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncSession

from domain.bulk.ledger import LaneItems
from domain.bulk.model import ItemRef, ItemStatus, ItemUpdate, Lane
from domain.db.base import DEFAULT_PROJECT
from domain.services import Services
from tests.integration.job_builders import a_queued_expand, sql

LEDGER, CHUNK = 2000, 100
#: The most rows that a statement may read per item: by the index, by ctid, and a few for a HOT chain or a recheck.
READS = 4


async def a_ledger(services: Services) -> Lane:
    job = await a_queued_expand(services)
    await sql(
        services,
        "INSERT INTO job_items (job_id, volume_id, status) SELECT :job_id, gen_random_uuid(), 'pending'"
        " FROM generate_series(1, :items)",
        job_id=job.id,
        items=LEDGER,
    )
    return Lane(job.id, uuid4(), DEFAULT_PROJECT, 1, None, {})


async def rows_read(session: AsyncSession) -> int:
    """How many items the transaction has read until now, by scans of the table and by indexes."""
    view = "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = 'job_items'"
    read: int = (await session.execute(text(view))).scalar_one()
    return read


async def item_rows(services: Services, lane: Lane, refs: Sequence[ItemRef]) -> list[Row[Any]]:
    return await sql(
        services,
        "SELECT status, code, due_at > now() FROM job_items WHERE job_id = :job_id AND volume_id = ANY(:volume_ids)",
        job_id=lane.parent_id,
        volume_ids=ids_of(refs),
    )


def ids_of(refs: Sequence[ItemRef]) -> list[UUID]:
    return [ref.volume_id for ref in refs]


def updates_of(refs: Sequence[ItemRef], status: ItemStatus) -> list[ItemUpdate]:
    return [ItemUpdate(ref.volume_id, status) for ref in refs]


@pytest.fixture
async def lane(services: Services) -> Lane:
    """A lane of a ledger that was planned after the last ANALYZE, as every ledger is when its lanes start."""
    await a_ledger(services)
    await sql(services, "ANALYZE job_items")
    return await a_ledger(services)


async def test_claiming_and_finishing_a_chunk_reads_only_the_chunk(services: Services, lane: Lane) -> None:
    async with services.database.transaction() as session:
        items = LaneItems(session, lane)
        claimed = await items.claim_due(CHUNK)
        read_by_claim = await rows_read(session)
        finished = await items.finish(updates_of(claimed, ItemStatus.SUCCEEDED))
        read_by_both = await rows_read(session)

    assert len(set(ids_of(claimed))) == len(finished) == CHUNK
    assert read_by_claim <= READS * CHUNK
    assert read_by_both - read_by_claim <= READS * CHUNK
    assert await item_rows(services, lane, claimed) == [("succeeded", None, False)] * CHUNK


async def test_postponing_a_claimed_chunk_reads_only_the_chunk(services: Services, lane: Lane) -> None:
    async with services.database.transaction() as session:
        items = LaneItems(session, lane)
        claimed = await items.claim_due(CHUNK)
        read_by_claim = await rows_read(session)
        await items.postpone(ids_of(claimed), previous=ItemStatus.CLAIMED, busy_seconds=60)
        read_by_both = await rows_read(session)

    assert read_by_both - read_by_claim <= READS * CHUNK
    assert await item_rows(services, lane, claimed) == [("pending", "volume-busy", True)] * CHUNK


async def test_postponing_a_locked_chunk_reads_only_the_chunk(services: Services, lane: Lane) -> None:
    async with services.database.transaction() as session:
        items = LaneItems(session, lane)
        locked = await items.lock_due(CHUNK)
        await items.postpone(ids_of(locked), previous=ItemStatus.PENDING, busy_seconds=60)
        read = await rows_read(session)

    assert len(set(ids_of(locked))) == CHUNK
    assert read <= 2 * READS * CHUNK
    assert await item_rows(services, lane, locked) == [("pending", "volume-busy", True)] * CHUNK
