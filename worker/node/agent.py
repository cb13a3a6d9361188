"""The work of the node for jobs: attach volumes for their holders, and detach them."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final
from uuid import UUID
from weakref import WeakValueDictionary

import structlog

from domain.attachment_handlers import MountedVolume
from domain.jobs.attempt import ClaimedJob
from domain.storage.backends import Backends
from domain.storage.context import Grant
from domain.storage_work import volume_of
from domain.volumes.attachments.model import Attachment, FilesystemReport, Mode
from worker.node.host.errors import AttachmentStale, HostUnable
from worker.node.host.host import HostProtocol
from worker.node.host.volumes import Attached, always
from worker.node.reports import report_of

#: What a job waits for, as users see it.
_ATTACH: Final = "attach"
_DETACH: Final = "detach"

log = structlog.get_logger(__name__)


class NodeAgent:
    """Implements `domain.attachment_handlers.NodeWork` on a host."""

    def __init__(self, host: HostProtocol, backends: Backends) -> None:
        self._host = host
        self._backends = backends
        self._locks: WeakValueDictionary[UUID, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def changing(self, volume_id: UUID) -> AsyncIterator[None]:
        """Run the block while no other one mounts this volume or lets go of it."""
        lock = self._locks.setdefault(volume_id, asyncio.Lock())
        async with lock:
            yield

    async def attach(self, job: ClaimedJob, others: Sequence[Attachment], grant: Grant) -> MountedVolume:
        """Mount the volume unless it is mounted, and show it to the holder.

        Raises:
            StorageError: the host cannot do it, or cannot do it now.
        """
        volume_id, filesystem = volume_of(job), job.params["filesystem"]
        with grant.blocking_call(_ATTACH):
            async with self.changing(volume_id):
                grant.check()
                file = self.file_of(volume_id, job.params["stored_on"])
                attached = await self.mount(volume_id, file, filesystem, grant.check)
                path = job.params["path"] or attached.mount_path or attached.device
                if job.params["path"] is not None:
                    read_only = job.params["mode"] == Mode.READ_ONLY
                    await self._host.bind(volume_id, Path(path), read_only=read_only)
        log.info("node.attached", volume_id=str(volume_id), holder=job.params["holder"], others=len(others))
        report = await report_of(self._host, volume_id, filesystem, attached.grown_to, attached.growth_error)
        return MountedVolume(attached.device, attached.mount_path, path, report)

    async def detach(self, job: ClaimedJob, others: Sequence[Attachment], grant: Grant) -> FilesystemReport:
        """Take the volume from the holder, and unmount it if there are no others.

        Raises:
            StorageError: something still uses it there.
        """
        volume_id = volume_of(job)
        with grant.blocking_call(_DETACH):
            async with self.changing(volume_id):
                grant.check()
                if job.params["path"] is not None:
                    await self._host.unbind(volume_id, Path(job.params["path"]))
                report = await report_of(self._host, volume_id, job.params["filesystem"])
                if not others:
                    await self._host.detach(volume_id)
        log.info("node.detached", volume_id=str(volume_id), holder=job.params["holder"], others=len(others))
        return report

    def file_of(self, volume_id: UUID, backend: str) -> Path:
        """Return the file of a volume.

        Raises:
            BackendUnavailable: this node cannot use the backend now.
            PermanentStorageError: its volumes are no files.
        """
        path = self._backends.get(backend).path(volume_id)
        if path is None:
            raise HostUnable(f"The volumes of the backend {backend!r} are no files: they cannot be attached.")
        return Path(path)

    async def mount(
        self, volume_id: UUID, file: Path, filesystem: str | None, check: Callable[[], None] = always
    ) -> Attached:
        """Mount the volume, unless it is mounted; let go of an earlier file of it.

        ``check`` raises an error when this must not be done any more.
        """
        try:
            return await self._host.attach(file, volume_id, filesystem, check)
        except AttachmentStale:  # the volume was taken from this node, and is given to it again
            await self.release(volume_id)
            return await self._host.attach(file, volume_id, filesystem, check)

    async def release(self, volume_id: UUID) -> None:
        """Let go of a volume that this node has no longer, even if processes use it."""
        lost = await self._host.release_lost(volume_id)
        ends = {"is_gone": lost.is_gone, "writes_stopped": lost.writes_stopped, "problems": lost.problems}
        log.warning("node.released", volume_id=str(volume_id), **ends)
