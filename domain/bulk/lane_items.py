"""Queries of lanes on the ledger, one chunk at a time. Takes a session, never commits.

`ledger` has the queries on behalf of the parent job.
"""

from collections.abc import Collection, Sequence
from datetime import timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import TextClause
from sqlalchemy.ext.asyncio import AsyncSession

from domain.bulk import statements
from domain.bulk.ledger import ItemRef, ItemUpdate, Lane
from domain.bulk.states import ItemStatus
from domain.db.sql import as_arrays

#: The pause before a busy volume is retried equals the time it has been busy, between these limits.
_PAUSES: Final = {"min_pause": timedelta(seconds=1), "max_pause": timedelta(seconds=10)}


class LaneItems:
    """The items of one attempt at a lane, within one transaction."""

    def __init__(self, session: AsyncSession, lane: Lane) -> None:
        self._session = session
        self._lane_ids = {"job_id": lane.parent_id, "lane_id": lane.job_id, "epoch": lane.epoch}

    async def reclaim(self) -> Sequence[ItemRef]:
        """Claim the items that an earlier attempt at this lane had claimed before it was killed or interrupted."""
        return await self._refs(statements.RECLAIM, ItemStatus.CLAIMED)

    async def claim_due(self, limit: int) -> Sequence[ItemRef]:
        """Mark up to ``limit`` due items as claimed; skip items locked by other lanes."""
        return await self._refs(statements.CLAIM_DUE, ItemStatus.CLAIMED, limit=limit)

    async def lock_due(self, limit: int) -> Sequence[ItemRef]:
        """Lock the items that `claim_due` would claim, for a transaction that writes a decision for each of them."""
        return await self._refs(statements.LOCK_DUE, ItemStatus.PENDING, limit=limit)

    async def write(self, updates: Sequence[ItemUpdate], *, previous: ItemStatus) -> None:
        """Write decisions. ``previous``: PENDING if the items are locked by `lock_due`, CLAIMED if they are claimed."""
        if not updates:
            return
        await self._session.execute(statements.WRITE[previous], {**self._lane_ids, **as_arrays(updates)})

    async def finish(self, updates: Sequence[ItemUpdate]) -> Sequence[ItemUpdate]:
        """Write the results of items that this attempt still holds; return the updates that were written."""
        if not updates:
            return []
        written = set((await self._session.scalars(statements.FINISH, {**self._lane_ids, **as_arrays(updates)})).all())
        return updates if len(written) == len(updates) else [one for one in updates if one.volume_id in written]

    async def postpone(self, volume_ids: Collection[UUID], *, previous: ItemStatus, busy_seconds: float) -> int:
        """Reschedule the items of busy volumes, or skip those busy for ``busy_seconds``; return how many were skipped.

        ``previous`` as for `write`.
        """
        if not volume_ids:
            return 0
        values = {"volume_ids": list(volume_ids), "max_busy": timedelta(seconds=busy_seconds), **_PAUSES}
        statuses = (await self._session.scalars(statements.POSTPONE[previous], {**self._lane_ids, **values})).all()
        return statuses.count(ItemStatus.SKIPPED)

    async def _refs(self, statement: TextClause, status: ItemStatus, **values: int) -> Sequence[ItemRef]:
        rows = await self._session.execute(statement, {**self._lane_ids, **values})
        return [ItemRef(volume_id, status, to_size, snapshot_id) for volume_id, to_size, snapshot_id in rows]
