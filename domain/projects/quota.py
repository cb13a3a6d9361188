"""The limits of projects, which hold whatever happens at once.

A transaction that adds something to a project with limits locks the project's row first, then counts what the project
has, and decides. Nothing is counted anywhere else: what is deleted is no longer counted, by whichever way it went.
"""

from collections.abc import Collection, Mapping
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import ARRAY, BigInteger, Row, Uuid, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from domain import metrics
from domain.errors import QuotaExceeded
from domain.projects.model import IS_LIMITED, LIMITS


class ProjectUsage(NamedTuple):
    """What a project has. Each field is limited by the column of the same name with ``max_`` before it."""

    volumes: int
    bytes: int
    snapshots: int
    queued_jobs: int


_IDS: Final = bindparam("ids", type_=ARRAY(Uuid()))
#: Find a project that has limits.
HAS_LIMITS: Final = text(f"SELECT 1 FROM projects WHERE id = :id AND {IS_LIMITED}")  # noqa: S608 (built from constants)
#: Lock those of these projects that have limits, in the order of their ids: no two transactions can deadlock.
LOCK: Final = (
    text(f"""
    SELECT id FROM projects WHERE id = ANY(:ids) AND {IS_LIMITED} ORDER BY id FOR NO KEY UPDATE
""")  # noqa: S608 (built from constants)
    .bindparams(_IDS)
    .columns(id=Uuid())
)
#: Lock one project, unless another transaction has locked it.
LOCK_IF_FREE: Final = text("SELECT id FROM projects WHERE id = :id FOR NO KEY UPDATE SKIP LOCKED").columns(id=Uuid())
#: What is counted for each field of `ProjectUsage`. A size that a job may give to a volume counts already.
_COUNTS: Final = {
    "volumes": "SELECT count(*) FROM volumes WHERE project_id = projects.id",
    "bytes": """
        SELECT CAST(coalesce(sum(greatest(size, growing_to)), 0) AS bigint)
        FROM volumes WHERE project_id = projects.id
    """,
    "snapshots": "SELECT count(*) FROM snapshots WHERE project_id = projects.id",
    "queued_jobs": """
        SELECT count(*) FROM jobs
        WHERE status = 'queued' AND started_at IS NULL AND project_id = projects.id AND parent_id IS NULL
            AND kind <> 'webhook.deliver'
    """,
}


def _usage(only_limited: str) -> str:
    """Build the SQL that counts what projects have, each number if the condition with its limit is true."""
    counts = (
        f"CASE WHEN {only_limited.format(name)} THEN ({_COUNTS[name]}) END AS {name}" for name in ProjectUsage._fields
    )
    return f"SELECT id, {', '.join(LIMITS)}, {', '.join(counts)} FROM projects WHERE id = ANY(:ids)"  # noqa: S608


_COLUMNS: Final[dict[str, Any]] = {
    "id": Uuid(),
    **dict.fromkeys((*LIMITS, *ProjectUsage._fields), BigInteger()),
}
#: What projects have.
USAGE: Final = text(_usage("true")).bindparams(_IDS).columns(**_COLUMNS)
#: The same for limits that are set. It is no part of `LOCK`, because only a statement that starts after the lock is
#: granted sees what the transaction before has committed.
LIMITED_USAGE: Final = text(_usage("max_{} IS NOT NULL")).bindparams(_IDS).columns(**_COLUMNS)


class Room:
    """What may still be added to a project, until the end of the transaction that has locked it."""

    def __init__(self, left: Mapping[str, int]) -> None:
        """Prepare the decision; ``left`` has what is left of each limit, for limits that are set."""
        self._left = dict(left)

    def take(self, **amounts: int) -> None:
        """Take ``volumes``, ``bytes``, ``snapshots`` or ``queued_jobs``; all of them, or none.

        Raises:
            QuotaExceeded: a limit does not allow it; names the first.
        """
        for name, amount in amounts.items():
            left = self._left.get(name)
            if left is not None and amount > max(left, 0):
                metrics.current().quota_refused(f"max_{name}")
                raise QuotaExceeded(quota=f"max_{name}", left=max(left, 0), requested=amount)
        for name in amounts.keys() & self._left.keys():
            self._left[name] -= amounts[name]


UNLIMITED: Final = Room({})


async def has_limits(session: AsyncSession, project_id: UUID) -> bool:
    """Return whether a project has limits."""
    return await session.scalar(HAS_LIMITS, {"id": project_id}) is not None


async def lock_rooms(session: AsyncSession | AsyncConnection, project_ids: Collection[UUID]) -> Mapping[UUID, Room]:
    """Lock projects and return the room in each; one without limits is not locked.

    Call it before any other row of the project is locked, so that no two transactions wait for each other.
    """
    rooms = dict.fromkeys(project_ids, UNLIMITED)
    locked = (await session.scalars(LOCK, {"ids": list(project_ids)})).all()
    if locked:
        rows = await session.execute(LIMITED_USAGE, {"ids": locked})
        rooms.update({row.id: Room(_left(row)) for row in rows})
    return rooms


async def lock_room_if_free(session: AsyncSession, project_id: UUID) -> Room | None:
    """Lock a project and return the room in it; None if another transaction has locked it."""
    if not await has_limits(session, project_id):
        return UNLIMITED
    if await session.scalar(LOCK_IF_FREE, {"id": project_id}) is None:
        return None
    return (await lock_rooms(session, [project_id]))[project_id]


def _left(row: Row[Any]) -> dict[str, int]:
    limits = {name: getattr(row, f"max_{name}") for name in ProjectUsage._fields}
    return {name: limit - getattr(row, name) for name, limit in limits.items() if limit is not None}


async def usage_of(session: AsyncSession, project_ids: Collection[UUID]) -> Mapping[UUID, ProjectUsage]:
    """Return what each of these projects has."""
    rows = await session.execute(USAGE, {"ids": list(project_ids)})
    return {row.id: ProjectUsage(*(getattr(row, name) for name in ProjectUsage._fields)) for row in rows}
