"""What lanes ask of the ledger, for a chunk at a time. Takes a session, never commits.

The statements are SQL, once and for all, and take arrays: a million rows pass through here, and as JSON, or through
expressions that are put together anew, they would cost more than all the rest.
"""

from collections.abc import Collection, Sequence
from datetime import timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import Interval, TextClause, bindparam, text
from sqlalchemy.ext.asyncio import AsyncSession

from domain.bulk.ledger import ItemRef, ItemUpdate, Lane
from domain.bulk.states import ItemStatus
from domain.db.sql import as_arrays, unnested

#: What a lane has in its hands, at its ring.
_HELD: Final = "items.status = 'claimed' AND items.lane_id = :lane_id AND items.epoch = :epoch"
#: What it has only locked, in the transaction that goes on; none of it must be let go without being written.
_LOCKED: Final = "items.status IS NOT DISTINCT FROM 'pending'"  # hides it from an index, as in `leases`; see `_write`

_DUE: Final = """
    SELECT volume_id, to_size, snapshot_id FROM job_items
    WHERE job_id = :job_id AND status = 'pending' AND due_at <= now()
    ORDER BY due_at, volume_id LIMIT :most FOR UPDATE SKIP LOCKED
"""
_LOCK: Final = text(_DUE)
#: What is materialized runs once, whatever the plan; as a subquery it may run for each row, and finds others each time.
_CLAIM: Final = text(f"""
    WITH due AS MATERIALIZED ({_DUE})
    UPDATE job_items AS items SET status = 'claimed', lane_id = :lane_id, epoch = :epoch
    FROM due WHERE items.job_id = :job_id AND items.volume_id = due.volume_id
    RETURNING items.volume_id, items.to_size, items.snapshot_id
""")  # noqa: S608 (words of our own)
_INHERIT: Final = text("""
    UPDATE job_items SET epoch = :epoch
    WHERE job_id = :job_id AND lane_id = :lane_id AND status = 'claimed' AND epoch < :epoch
    RETURNING volume_id, to_size, snapshot_id
""")


_ENTRIES: Final = unnested(
    "entry",
    volume_id="uuid",
    status="text",
    code="text",
    detail="text",
    from_size="bigint",
    to_size="bigint",
    used="bigint",
    snapshot_id="uuid",
)


def _write(whose: str) -> TextClause:
    """SQL that finds each item by its key, and then by its place.

    PostgreSQL knows nothing yet of a ledger that has just been planned. Joined by the key, it would read all that is
    pending for each chunk, in the belief that this is one row.
    """
    return text(f"""
        WITH given AS MATERIALIZED (
            SELECT *, (SELECT ctid FROM job_items WHERE job_id = :job_id AND volume_id = entry.volume_id) AS place
            FROM {_ENTRIES}
        )
        UPDATE job_items AS items
        SET status = given.status, lane_id = :lane_id, epoch = :epoch, code = given.code, detail = given.detail,
            from_size = coalesce(given.from_size, items.from_size), to_size = given.to_size,
            used = coalesce(given.used, items.used), snapshot_id = given.snapshot_id
        FROM given
        WHERE items.ctid = ANY(ARRAY(SELECT place FROM given)) AND items.ctid = given.place AND {whose}
    """)  # noqa: S608 (words of our own)


_FINISH: Final = text(f"""
    UPDATE job_items AS items
    SET status = entry.status, code = entry.code, detail = entry.detail, snapshot_id = entry.snapshot_id
    FROM {_ENTRIES}
    WHERE items.job_id = :job_id AND items.volume_id = entry.volume_id AND {_HELD}
    RETURNING items.volume_id
""")  # noqa: S608 (words of our own)


def _postpone(whose: str) -> TextClause:
    return text(f"""
        UPDATE job_items AS items
        SET status = CASE WHEN tired THEN 'skipped' ELSE 'pending' END,
            code = 'volume-busy',
            detail = CASE WHEN tired THEN 'Other operations had the volume all the time.' END,
            busy_since = since,
            due_at = now() + least(greatest(now() - since, :shortest), :longest)
        FROM (
            SELECT volume_id, coalesce(busy_since, now()) AS since,
                coalesce(busy_since, now()) <= now() - :patience AS tired
            FROM job_items WHERE job_id = :job_id AND volume_id = ANY(CAST(:volume_ids AS uuid[]))
        ) AS busy
        WHERE items.job_id = :job_id AND items.volume_id = busy.volume_id AND {whose}
        RETURNING items.status
    """).bindparams(  # noqa: S608 (words of our own)
        *(bindparam(name, type_=Interval()) for name in ("shortest", "longest", "patience"))
    )


_WRITE: Final = {ItemStatus.PENDING: _write(_LOCKED), ItemStatus.CLAIMED: _write(_HELD)}
_POSTPONE: Final = {ItemStatus.PENDING: _postpone(_LOCKED), ItemStatus.CLAIMED: _postpone(_HELD)}
#: How long a busy volume is left alone before it is tried again: at first, and at most.
_PAUSES: Final = {"shortest": timedelta(seconds=1), "longest": timedelta(seconds=10)}


class LaneItems:
    """The ledger as lanes see it, from one transaction."""

    def __init__(self, session: AsyncSession, lane: Lane) -> None:
        self._session = session
        self._names = {"job_id": lane.job_id, "lane_id": lane.lane_id, "epoch": lane.epoch}

    async def claim_leftovers(self) -> Sequence[ItemRef]:
        """Claim what the lane had claimed at an earlier ring: its predecessor was killed or interrupted."""
        return await self._refs(_INHERIT, ItemStatus.CLAIMED)

    async def claim(self, limit: int) -> Sequence[ItemRef]:
        """Claim pending items whose time has come; those that others are claiming at the moment are passed over."""
        return await self._refs(_CLAIM, ItemStatus.CLAIMED, most=limit)

    async def lock(self, limit: int) -> Sequence[ItemRef]:
        """Lock what `claim` would claim: for a transaction that goes on to write what becomes of each."""
        return await self._refs(_LOCK, ItemStatus.PENDING, most=limit)

    async def write(self, entries: Sequence[ItemUpdate], *, was: ItemStatus) -> None:
        """Write entries down, for items that the lane has locked (``was`` PENDING) or still holds (CLAIMED)."""
        if not entries:
            return
        await self._session.execute(_WRITE[was], {**self._names, **as_arrays(entries)})

    async def finish(self, entries: Sequence[ItemUpdate]) -> Sequence[ItemUpdate]:
        """Write down what became of items that the lane still holds; returns the entries of these."""
        if not entries:
            return []
        written = set((await self._session.scalars(_FINISH, {**self._names, **as_arrays(entries)})).all())
        return entries if len(written) == len(entries) else [entry for entry in entries if entry.volume_id in written]

    async def postpone(self, volume_ids: Collection[UUID], *, was: ItemStatus, patience: float) -> int:
        """Let busy volumes wait, or skip those that have been busy for ``patience`` seconds. Returns how many skipped.

        The pause grows with the time that a volume has been busy. ``was`` as for `write`.
        """
        if not volume_ids:
            return 0
        given = {"volume_ids": list(volume_ids), "patience": timedelta(seconds=patience), **_PAUSES}
        statuses = (await self._session.scalars(_POSTPONE[was], {**self._names, **given})).all()
        return statuses.count(ItemStatus.SKIPPED)

    async def _refs(self, statement: TextClause, status: ItemStatus, **more: int) -> Sequence[ItemRef]:
        rows = await self._session.execute(statement, {**self._names, **more})
        return [ItemRef(volume_id, status, to_size, snapshot_id) for volume_id, to_size, snapshot_id in rows]
