"""The handlers of the jobs that attach volumes to nodes, detach them, and take them from nodes that do not answer.

What happens on the node is the work of its agent (`worker.node`), behind `NodeWork`. A volume is mounted for its first
holder and unmounted after its last one: no other job can add or remove a holder meanwhile, since each holds the volume.
"""

import math
from dataclasses import dataclass
from typing import Final, Protocol
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from domain.db.database import Database
from domain.jobs.attempt import ClaimedJob, Payload, Succeeded
from domain.jobs.kinds import FailedJobs, JobHandler, JobKind, SucceededJobs
from domain.jobs.model import Job, retry_columns
from domain.operation_handler import OperationHandler
from domain.operations import OPERATIONS
from domain.projects.quota import Room
from domain.storage.backends import Backends
from domain.storage.context import Grant
from domain.storage_work import volume_of
from domain.volumes.attachments.freezing import Freezer
from domain.volumes.attachments.model import Attachment, AttachmentState, FilesystemReport, Mode
from domain.volumes.attachments.repository import AttachmentRepository
from domain.volumes.attachments.service import NewAttachment, attach_job, detach_job

#: In what `seal` found: the volume was isolated although the job has failed, so that its holders have lost it.
_IS_ISOLATED: Final = "isolated"


@dataclass(frozen=True)
class MountedVolume:
    """A volume on a node, as its agent has found it after its work."""

    device: str
    #: Where the node has mounted the file system; None if the volume has none.
    mount_path: str | None
    #: Where the holder finds the file system, or the device.
    path: str
    report: FilesystemReport


class NodeWork(Protocol):
    """What the agent of a node does for jobs. Each call may be repeated, and finds what is done already.

    Raises:
        StorageError: as a storage driver.
    """

    async def attach(self, job: ClaimedJob, others: list[Attachment], grant: Grant) -> MountedVolume:
        """Mount the volume, and show it to the holder; ``others`` are the other attachments of the volume."""

    async def detach(self, job: ClaimedJob, others: list[Attachment], grant: Grant) -> FilesystemReport:
        """Take the volume from the holder, and unmount it if there are no others."""


class _NodeHandler(OperationHandler):
    """A job that the agent of a node carries out."""

    kind: JobKind

    def __init__(
        self,
        database: Database,
        backends: Backends,
        *,
        max_attempts: int,
        node: NodeWork | None,
        freezer: Freezer | None,
    ) -> None:
        """Create the handler; ``node`` is the agent, None in a process that is none."""
        super().__init__(OPERATIONS[self.kind], backends, max_attempts=max_attempts, freezer=freezer)
        self._database = database
        self._work = node

    @property
    def _node(self) -> NodeWork:
        if self._work is None:
            raise RuntimeError("this process is no node's agent")
        return self._work

    async def _others(self, job: ClaimedJob) -> list[Attachment]:
        """Return the attachments of the volume besides that of the job."""
        async with self._database.transaction() as session:
            found = await AttachmentRepository(session).of_volume(volume_of(job))
        return [one for one in found if one.id != _attachment_id(job)]


class AttachHandler(_NodeHandler):
    """Attaches a volume on the node of the job, for one holder."""

    kind = JobKind.VOLUME_ATTACH

    async def perform(self, job: ClaimedJob, grant: Grant) -> Succeeded:
        """Mount the volume, unless it is mounted, and show it to the holder."""
        mounted = await self._node.attach(job, await self._others(job), grant)
        return Succeeded(
            {
                "volume_id": str(volume_of(job)),
                "attachment_id": job.params["attachment_id"],
                "device": mounted.device,
                "mount_path": mounted.mount_path,
                "path": mounted.path,
                "filesystem": mounted.report.to_json(),
            }
        )

    async def seal(self, job: ClaimedJob, grant: Grant) -> Payload | None:
        """Undo what an attempt for a new holder may have left on the node, also after this attempt was stopped."""
        if job.params["is_new"]:
            await self._node.detach(job, await self._others(job), Grant(job.id, grant.fence, math.inf))
        return None

    async def record(self, session: AsyncSession, succeeded: SucceededJobs) -> None:
        """Record the attachments and mounts, and release the volumes."""
        await super().record(session, [(job, {}) for job, _ in succeeded])
        attachments = AttachmentRepository(session)
        await attachments.set_states([_attachment_id(job) for job, _ in succeeded], AttachmentState.ATTACHED)
        for job, result in succeeded:
            mount = {"device": result["device"], "path": result["mount_path"], "node": job.params["node"]}
            await attachments.record_mount(volume_of(job), mount | {"generation": job.params["fence_version"]})
            await attachments.record_report(volume_of(job), FilesystemReport.from_json(result["filesystem"]))

    async def abandon(self, session: AsyncSession, failed: FailedJobs) -> None:
        """Release the volumes, and remove the attachments of new holders."""
        await super().abandon(session, [(job, None) for job, _ in failed])
        new = [job for job, _ in failed if job.params["is_new"]]
        attachments = AttachmentRepository(session)
        await attachments.remove([_attachment_id(job) for job in new])
        await attachments.remove_unused_mounts([volume_of(job) for job in new])

    async def retry(self, session: AsyncSession, ended: Job, room: Room) -> Job:  # noqa: ARG002 (adds nothing)
        """Request the attachment again."""
        wanted = {name: ended.params[name] for name in ("node", "holder", "path")}
        new = NewAttachment(**wanted, mode=Mode(ended.params["mode"]))
        columns = {"max_attempts": self._max_attempts, **retry_columns(ended)}
        return await attach_job(session, volume_of(ended), ended.project_id, new, **columns)


class _LeavingHandler(_NodeHandler):
    """A job that takes a volume from holders."""

    async def retry(self, session: AsyncSession, ended: Job, room: Room) -> Job:  # noqa: ARG002 (adds nothing)
        """Request it again, if the attachment is still there."""
        columns = {"max_attempts": self._max_attempts, **retry_columns(ended)}
        what = (volume_of(ended), ended.project_id, _attachment_id(ended))
        return await detach_job(session, *what, force=ended.params["force"], **columns)

    async def abandon(self, session: AsyncSession, failed: FailedJobs) -> None:
        """Release the volumes; their holders still have them."""
        await super().abandon(session, [(job, None) for job, _ in failed])
        for job, _ in failed:
            await AttachmentRepository(session).keep(volume_of(job))


class DetachHandler(_LeavingHandler):
    """Detaches a volume from one holder, on the node of the job."""

    kind = JobKind.VOLUME_DETACH

    async def perform(self, job: ClaimedJob, grant: Grant) -> Succeeded:
        """Take the volume from the holder; unmount it after the last one."""
        others = await self._others(job)
        report = await self._node.detach(job, others, grant)
        ids = {"volume_id": str(volume_of(job)), "attachment_id": job.params["attachment_id"]}
        return Succeeded({**ids, "is_unmounted": not others, "filesystem": report.to_json()})

    async def seal(self, job: ClaimedJob, grant: Grant) -> Payload | None:  # noqa: ARG002 (nothing to shut out)
        """Leave the node as it is: the holder keeps the volume, and what is still mounted."""
        return None

    async def record(self, session: AsyncSession, succeeded: SucceededJobs) -> None:
        """Remove the attachments, and the mounts of volumes without any; release the volumes."""
        await super().record(session, [(job, {}) for job, _ in succeeded])
        attachments = AttachmentRepository(session)
        await attachments.remove([_attachment_id(job) for job, _ in succeeded])
        await attachments.remove_unused_mounts([volume_of(job) for job, _ in succeeded])
        for job, result in succeeded:
            report = FilesystemReport.from_json(result["filesystem"])
            await attachments.record_report(volume_of(job), report, is_last=result["is_unmounted"])


class IsolateHandler(_LeavingHandler):
    """Takes a volume from a node that does not answer, by storage work."""

    kind = JobKind.VOLUME_ISOLATE

    async def perform(self, job: ClaimedJob, grant: Grant) -> Succeeded:
        """Publish the bytes anew; while nothing is written, if the node does answer: they may be copied one by one."""
        if self._freezer is None:
            return await super().perform(job, grant)
        async with self._freezer.frozen(volume_of(job)):
            return await super().perform(job, grant)

    async def seal(self, job: ClaimedJob, grant: Grant) -> Payload | None:
        """Finish what an earlier attempt has begun to publish: holders may have lost the volume already."""
        volume_id, driver = volume_of(job), self._driver(job)
        stored = await driver.stat(volume_id, ())
        if stored is None or stored.volume.fence is None or stored.volume.fence.version < job.fence.version:
            return await super().seal(job, grant)
        size = await driver.isolate(volume_id, Grant(job.id, grant.fence, math.inf))
        return {"volume_id": str(volume_id), "size": size, _IS_ISOLATED: True}

    async def abandon(self, session: AsyncSession, failed: FailedJobs) -> None:
        """Release the volumes; those that are isolated after all have no holders any more."""
        isolated = [volume_of(job) for job, found in failed if (found or {}).get(_IS_ISOLATED)]
        await AttachmentRepository(session).remove_of(isolated)
        await super().abandon(session, failed)

    async def record(self, session: AsyncSession, succeeded: SucceededJobs) -> None:
        """Remove all attachments of the volumes, and release them."""
        await super().record(session, succeeded)
        await AttachmentRepository(session).remove_of([volume_of(job) for job, _ in succeeded])


def attachment_handlers(
    database: Database,
    backends: Backends,
    *,
    max_attempts: int,
    node: NodeWork | None = None,
    freezer: Freezer | None = None,
) -> dict[str, JobHandler]:
    """Return the handlers of jobs about attachments; ``node`` is the agent that this process is, if it is one."""
    kinds = (AttachHandler, DetachHandler, IsolateHandler)
    return {one.kind: one(database, backends, max_attempts=max_attempts, node=node, freezer=freezer) for one in kinds}


def _attachment_id(job: Job | ClaimedJob) -> UUID:
    return UUID(job.params["attachment_id"])
