"""Looks at the volumes of the node again and again, and does what has to be done.

Nothing depends on a message: a message only makes the keeper look sooner. Each volume is looked after by a task of its
own, so that none waits for what another one takes.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from functools import partial
from pathlib import Path
from typing import Final
from uuid import UUID

import structlog

from domain import metrics
from domain.errors import DatabaseUnavailable, StorageError
from domain.tasks import cancel_and_wait
from domain.volumes.attachments.model import Mode
from domain.volumes.attachments.node_volumes import Holding, NodeVolume, NodeVolumes
from worker.node.agent import NodeAgent
from worker.node.freezing import NodeFreezes
from worker.node.host.calls import in_thread
from worker.node.host.errors import GrowthRefused
from worker.node.host.host import USAGE_SECONDS, HostProtocol
from worker.node.host.mounts import resolved
from worker.node.host.volumes import FoundVolume
from worker.node.reports import report_of

#: Seconds between two looks, unless a message comes.
LOOK_SECONDS: Final = 1.0
#: Seconds between two reports on the use of a file system.
REPORT_SECONDS: Final = 60.0
#: Seconds until a growth that failed is tried again, unless the volume grows meanwhile.
RETRY_SECONDS: Final = 60.0

log = structlog.get_logger(__name__)

Clock = Callable[[], float]


class VolumeKeeper:
    """Keeps the volumes of this host as PostgreSQL says they should be."""

    def __init__(
        self,
        host: HostProtocol,
        agent: NodeAgent,
        volumes: NodeVolumes,
        woken: Callable[[float], Awaitable[None]],
        *,
        freezes: NodeFreezes,
        trim_seconds: float,
        clock: Clock = time.monotonic,
    ) -> None:
        """Prepare the keeper.

        Args:
            host: This host.
            agent: Knows the files of volumes.
            volumes: The volumes of this node, in PostgreSQL.
            woken: Waits for a message, for at most so many seconds.
            freezes: Freezes what workers ask for.
            trim_seconds: Seconds between two trims of a file system.
            clock: Seconds since some moment.
        """
        self._host = host
        self._agent = agent
        self._volumes = volumes
        self._woken = woken
        self._freezes = freezes
        self._trim_seconds = trim_seconds
        self._clock = clock
        self._report_at: dict[UUID, float] = {}
        self._trim_at: dict[UUID, float] = {}
        #: When a growth to a size that has failed is tried again.
        self._retry_at: dict[tuple[UUID, int], float] = {}
        #: What is at work, by volume and whether it is a trim, which may take an hour.
        self._tasks: dict[tuple[UUID, bool], asyncio.Task[None]] = {}

    async def run_forever(self) -> None:
        """Look at every message, and once a second."""
        try:
            while True:
                await self._woken(LOOK_SECONDS)
                try:
                    await self.look()
                except DatabaseUnavailable as error:
                    log.debug("node.not_looked", error=str(error))  # the heartbeat logs it
                except Exception:
                    log.exception("node.look_failed")
        finally:
            await cancel_and_wait(self._tasks.values())

    async def look(self) -> None:
        """Begin to let go of what was taken away, take back what is missing, grow, report, trim.

        Raises:
            DatabaseUnavailable: nothing was changed.
        """
        await self._freezes.look()
        found = {one.volume_id: one for one in await self._host.found()}
        wanted = await self._volumes.all()  # after looking at the host: what a job mounts is in PostgreSQL before
        self._forget(wanted)
        for volume_id in found.keys() - wanted.keys():
            self._begin(volume_id, self._release(volume_id))
        for volume in wanted.values():
            if not volume.is_changing and volume.holders:
                self._begin(volume.id, self._look_after(volume, found.get(volume.id)))

    async def idle(self) -> None:
        """Wait until nothing is at work."""
        while self._tasks:
            await asyncio.wait(self._tasks.values())

    def _begin(self, volume_id: UUID, work: Coroutine[None, None, None], *, is_trim: bool = False) -> None:
        """Work in a task, unless earlier work of this kind on the volume has not ended."""
        if (volume_id, is_trim) in self._tasks:
            work.close()
            return
        task = self._tasks[volume_id, is_trim] = asyncio.create_task(self._logging(volume_id, work))
        task.add_done_callback(partial(self._end, volume_id, is_trim))

    def _end(self, volume_id: UUID, is_trim: bool, _: "asyncio.Task[None]") -> None:  # noqa: FBT001 (by `partial`)
        del self._tasks[volume_id, is_trim]

    @staticmethod
    async def _logging(volume_id: UUID, work: Coroutine[None, None, None]) -> None:
        try:
            await work
        except StorageError as error:
            log.warning("node.volume_failed", volume_id=str(volume_id), error=error.message)
        except DatabaseUnavailable as error:
            log.debug("node.not_looked", error=str(error))
        except Exception:
            log.exception("node.look_failed")

    async def _release(self, volume_id: UUID) -> None:
        async with self._agent.changing(volume_id):
            if await self._volumes.get(volume_id) is None:  # no job has attached it again meanwhile
                await self._agent.release(volume_id)

    async def _look_after(self, volume: NodeVolume, found: FoundVolume | None) -> None:
        if not await _is_complete(volume, found):
            await self._take_back(volume.id)
        await self._keep(volume)

    async def _take_back(self, volume_id: UUID) -> None:
        """Mount what the host has lost, such as by a reboot, or because another program has unmounted it.

        The volume may have left this node since it was read, and while it is mounted.
        """
        async with self._agent.changing(volume_id):
            volume = await self._volumes.get(volume_id)
            if volume is None or volume.is_changing or not volume.holders:
                return
            try:
                file = self._agent.file_of(volume.id, volume.backend)
                attached = await self._agent.mount(volume.id, file, volume.filesystem)
                for holder in volume.holders:
                    await self._bind(volume.id, holder)
            except StorageError as error:
                log.warning("node.not_taken_back", volume_id=str(volume.id), error=error.message)
                return
            if await self._volumes.get(volume_id) is None:
                await self._agent.release(volume_id)
                return
        await self._volumes.mounted(volume.id, attached.device, attached.mount_path)
        log.info("node.taken_back", volume_id=str(volume.id), holders=len(volume.holders))
        report = await report_of(self._host, volume.id, volume.filesystem, attached.grown_to, attached.growth_error)
        await self._volumes.report(volume.id, report)

    async def _bind(self, volume_id: UUID, holder: Holding) -> None:
        """Show the volume to a holder; what hinders that does not keep it from the others."""
        try:
            if holder.path is not None:
                await self._host.bind(volume_id, Path(holder.path), read_only=holder.mode is Mode.READ_ONLY)
        except StorageError as error:
            log.warning("node.not_taken_back", volume_id=str(volume_id), path=holder.path, error=error.message)

    async def _keep(self, volume: NodeVolume) -> None:
        now = self._clock()
        if volume.filesystem is not None and now >= self._trim_at.setdefault(volume.id, now + self._trim_seconds):
            self._trim_at[volume.id] = now + self._trim_seconds
            self._begin(volume.id, self._host.trim(volume.id), is_trim=True)
        if (volume.grown_to or 0) < volume.size and now >= self._retry_at.get((volume.id, volume.size), now):
            await self._grow(volume)
        elif volume.filesystem is not None and now >= self._report_at.get(volume.id, now):
            self._report_at[volume.id] = now + REPORT_SECONDS
            report = await report_of(self._host, volume.id, volume.filesystem)
            if report.size is not None:
                await self._volumes.report(volume.id, report)

    async def _grow(self, volume: NodeVolume) -> None:
        """Grow the device and the file system of a volume; a failure is reported with its reason, and tried again."""
        try:
            grown_to: int | None = await self._host.grow(volume.id, volume.filesystem)
            error = None
        except GrowthRefused as refused:
            grown_to, error = None, refused.message
            self._retry_at[volume.id, volume.size] = self._clock() + RETRY_SECONDS
        report = await report_of(self._host, volume.id, volume.filesystem, grown_to, error)
        await self._volumes.report(volume.id, report)
        if error is None:
            log.info("node.grown", volume_id=str(volume.id), size=grown_to)
        else:
            metrics.current().growth_failed()
            log.warning("node.not_grown", volume_id=str(volume.id), error=error)

    def _forget(self, wanted: Mapping[UUID, NodeVolume]) -> None:
        for times in (self._report_at, self._trim_at):
            for volume_id in times.keys() - wanted.keys():
                del times[volume_id]
        sizes = {(volume.id, volume.size) for volume in wanted.values()}
        for key in self._retry_at.keys() - sizes:
            del self._retry_at[key]


async def _is_complete(volume: NodeVolume, found: FoundVolume | None) -> bool:
    """Return whether a volume is mounted on the host, and shown to its holders: they would write to the host's disk."""
    if found is None or volume.filesystem is None:
        return found is not None
    paths = [holder.path for holder in volume.holders if holder.path is not None]
    missing = [path for path in paths if path not in found.targets]
    real = [str(await in_thread(USAGE_SECONDS, resolved, Path(path))) for path in missing]
    return found.mount_path is not None and all(path in found.targets for path in real)
