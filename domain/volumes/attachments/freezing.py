"""Freezes of mounted file systems, for snapshots: a worker asks, the node that has the volume freezes and thaws.

They meet in the row of the mount; messages through Redis only make them look sooner. The node thaws after
`FREEZE_SECONDS` at the latest, whatever the worker does.

    worker   freeze_id, freeze_until; freeze_state NULL
    node         freeze_state frozen
    worker           takes the snapshot; freeze_state released
    node                 thaws; freeze_state held, or lost if it was thawed before
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, cast
from uuid import UUID

from sqlalchemy import Text, exists, func, select, type_coerce, update
from uuid_utils.compat import uuid7

from domain.db.database import Database
from domain.db.sql import from_now
from domain.errors import DatabaseUnavailable
from domain.jobs.model import Worker, is_alive
from domain.jobs.transport.job_queue import JobQueue
from domain.storage.context import Grant
from domain.storage.driver import StorageDriver, Taken
from domain.volumes.attachments.model import FreezeState, Mount, queue_of

#: Maximum time that a file system is frozen: what writes to it stands still meanwhile.
FREEZE_SECONDS: Final = 10.0
#: How long a worker waits for the freeze to begin: the node first writes out what the file system has in memory.
_START_SECONDS: Final = 30.0
#: How long a worker waits for the node's answer after the thaw.
_THAW_SECONDS: Final = 5.0
_POLL_SECONDS: Final = 0.02


@dataclass
class RequestedFreeze:
    """A freeze that a worker has asked for."""

    #: Whether the file system stands still at the beginning of the block.
    is_frozen: bool = False
    #: Whether the file system stood still from before the block until after it; known after the block only.
    was_held: bool = False


class Freezer:
    """Asks nodes to freeze what they have mounted, for a worker."""

    def __init__(self, database: Database, queue: JobQueue, *, lease: float) -> None:
        """Prepare the freezer; a node is alive for ``lease`` seconds after a heartbeat of its agent."""
        self._database = database
        self._queue = queue
        self._lease = lease

    def while_taking(self, driver: StorageDriver, *, attached: bool) -> StorageDriver:
        """Return a driver that freezes the file system of a volume that a node has while it takes a snapshot."""
        return cast("StorageDriver", _FreezingDriver(driver, self)) if attached else driver

    @asynccontextmanager
    async def frozen(self, volume_id: UUID) -> AsyncIterator[RequestedFreeze]:
        """Run the block while the file system of a volume is frozen, if a node has it mounted and can freeze it."""
        freeze, freeze_id = RequestedFreeze(), uuid7()
        node = await self._ask(volume_id, freeze_id)
        if node is None:
            yield freeze
            return
        await self._queue.wake(queue_of(node))
        state = await self._state(freeze_id, {FreezeState.FROZEN, FreezeState.LOST}, _START_SECONDS)
        freeze.is_frozen = state is FreezeState.FROZEN
        try:
            yield freeze
        finally:
            with suppress(DatabaseUnavailable):  # the node thaws by itself
                await self._release(freeze_id)
                await self._queue.wake(queue_of(node))
                if freeze.is_frozen:
                    ended = await self._state(freeze_id, {FreezeState.HELD, FreezeState.LOST}, _THAW_SECONDS)
                    freeze.was_held = ended is FreezeState.HELD

    async def _ask(self, volume_id: UUID, freeze_id: UUID) -> str | None:
        """Write the request down; return the node that has the volume mounted, None if no live one has."""
        values = {"freeze_id": freeze_id, "freeze_until": from_now(_START_SECONDS), "freeze_state": None}
        can_answer = exists().where(Worker.node == Mount.node, is_alive(self._lease))
        query = update(Mount).where(Mount.volume_id == volume_id, Mount.path.is_not(None), can_answer).values(values)
        async with self._database.transaction() as session:
            return await session.scalar(query.returning(Mount.node).execution_options(synchronize_session=False))

    async def _release(self, freeze_id: UUID) -> None:
        await FreezeAnswers(self._database).answer(freeze_id, FreezeState.RELEASED, after=[None, FreezeState.FROZEN])

    async def _state(self, freeze_id: UUID, wanted: set[FreezeState], seconds: float) -> FreezeState | None:
        """Wait until the node has brought the freeze to one of these states; return None if it takes too long."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            async with self._database.transaction() as session:
                state = await session.scalar(select(Mount.freeze_state).where(Mount.freeze_id == freeze_id))
            if state in wanted:
                return state
            await asyncio.sleep(_POLL_SECONDS)
        return None


class _FreezingDriver:
    """Delegates to a driver."""

    def __init__(self, inner: StorageDriver, freezer: Freezer) -> None:
        self._inner = inner
        self._freezer = freezer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def take_snapshot(
        self, volume_id: UUID, snapshot_id: UUID, grant: Grant, *, allow_torn: bool = True
    ) -> Taken:
        """Take a snapshot of a frozen file system: one that is copied meanwhile is not torn."""
        async with self._freezer.frozen(volume_id) as freeze:
            torn = allow_torn or freeze.is_frozen
            taken = await self._inner.take_snapshot(volume_id, snapshot_id, grant, allow_torn=torn)
        return taken._replace(was_frozen=freeze.was_held)


class FreezeAnswers:
    """What a node writes about freezes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def requested(self, node: str) -> Sequence[Mount]:
        """Return the mounts of a node whose freeze it has not tried yet."""
        pending = Mount.freeze_id.is_not(None) & Mount.freeze_state.is_(None) & (Mount.freeze_until > func.now())
        async with self._database.transaction() as session:
            return (await session.scalars(select(Mount).where(Mount.node == node, pending))).all()

    async def answer(self, freeze_id: UUID, state: FreezeState, *, after: Sequence[FreezeState | None]) -> bool:
        """Move a freeze on; return False if it is not in one of the states ``after``, or another has replaced it."""
        present = func.coalesce(type_coerce(Mount.freeze_state, Text), "")
        is_after = present.in_([one or "" for one in after])
        query = update(Mount).where(Mount.freeze_id == freeze_id, is_after).values(freeze_state=state)
        async with self._database.transaction() as session:
            found = await session.scalar(query.returning(Mount.volume_id).execution_options(synchronize_session=False))
        return found is not None

    async def is_released(self, freeze_id: UUID) -> bool:
        """Return whether the worker is done, or the freeze has been replaced by another one."""
        async with self._database.transaction() as session:
            query = select(Mount.freeze_state).where(Mount.freeze_id == freeze_id)
            found = (await session.execute(query)).one_or_none()
        return found is None or found[0] is not FreezeState.FROZEN
