"""Freezes file systems of the node when workers ask for it, and thaws them in time.

The freezes of a volume follow each other: a worker that takes over from a lost one asks again while the file system is
still frozen for the first one, and has to have a freeze of its own.
"""

import asyncio
from functools import partial
from typing import Final
from uuid import UUID

import structlog

from domain import metrics
from domain.errors import DatabaseUnavailable, StorageError
from domain.volumes.attachments.freezing import FREEZE_SECONDS, FreezeAnswers
from domain.volumes.attachments.model import FreezeState
from worker.node.host.host import HeldFreeze, HostProtocol

#: Seconds between two checks whether a worker is done.
_POLL_SECONDS: Final = 0.02

log = structlog.get_logger(__name__)


class NodeFreezes:
    """Answers the requests of workers, each in a task of its own."""

    def __init__(self, host: HostProtocol, answers: FreezeAnswers, node: str) -> None:
        self._host = host
        self._answers = answers
        self._node = node
        self._tasks: dict[UUID, asyncio.Task[None]] = {}
        #: The last freeze of each volume that has one.
        self._last: dict[UUID, asyncio.Task[None]] = {}

    async def look(self) -> None:
        """Begin the freezes that workers have requested.

        Raises:
            DatabaseUnavailable: PostgreSQL does not answer.
        """
        for mount in await self._answers.requested(self._node):
            if mount.freeze_id is not None and mount.freeze_id not in self._tasks:
                before = self._last.get(mount.volume_id)
                task = asyncio.create_task(self._freeze_after(before, mount.volume_id, mount.freeze_id))
                self._tasks[mount.freeze_id] = self._last[mount.volume_id] = task
                task.add_done_callback(partial(self._forget, mount.volume_id, mount.freeze_id))

    def _forget(self, volume_id: UUID, freeze_id: UUID, task: "asyncio.Task[None]") -> None:
        del self._tasks[freeze_id]
        if self._last[volume_id] is task:
            del self._last[volume_id]

    async def close(self) -> None:
        """Wait for the freezes that are at work; each ends within seconds."""
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _freeze_after(self, before: "asyncio.Task[None] | None", volume_id: UUID, freeze_id: UUID) -> None:
        if before is not None:
            await asyncio.wait([before])  # it finds soon that another has replaced it
        await self._freeze(volume_id, freeze_id)

    async def _freeze(self, volume_id: UUID, freeze_id: UUID) -> None:
        try:
            freeze = await self._host.freeze(volume_id, FREEZE_SECONDS)
        except StorageError as error:
            log.warning("node.not_frozen", volume_id=str(volume_id), error=error.message)
            await self._answer(freeze_id, FreezeState.LOST, None)
            metrics.current().freeze_ended(FreezeState.LOST)
            return
        try:
            if await self._answer(freeze_id, FreezeState.FROZEN, None):
                await self._until_released(freeze_id, freeze)
        finally:
            was_held = await freeze.release()
        log.info("node.thawed", volume_id=str(volume_id), was_held=was_held)
        after = FreezeState.RELEASED
        is_held = was_held and await self._answer(freeze_id, FreezeState.HELD, after)
        if not is_held:
            await self._answer(freeze_id, FreezeState.LOST, FreezeState.FROZEN)
            await self._answer(freeze_id, FreezeState.LOST, after)
        metrics.current().freeze_ended(FreezeState.HELD if is_held else FreezeState.LOST)

    async def _until_released(self, freeze_id: UUID, freeze: HeldFreeze) -> None:
        while freeze.still_frozen():
            try:
                if await self._answers.is_released(freeze_id):
                    return
            except DatabaseUnavailable:
                return  # no worker could record the snapshot either
            await asyncio.sleep(_POLL_SECONDS)

    async def _answer(self, freeze_id: UUID, state: FreezeState, after: FreezeState | None) -> bool:
        try:
            return await self._answers.answer(freeze_id, state, after=[after])
        except DatabaseUnavailable as error:
            log.warning("node.not_answered", error=str(error))
            return False
