"""Requests about attachments: read them, and accept jobs that attach a volume to a node, or detach it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from uuid_utils.compat import uuid7

from domain.audit.repository import add_entries
from domain.db.database import Database
from domain.db.pagination import Page, PageRequest
from domain.errors import Invalid, UnknownNode
from domain.jobs.acceptance import ANONYMOUS, RequestOrigin, accepting, entry_of, log_accepted
from domain.jobs.attempt import Payload
from domain.jobs.kinds import NODE_KINDS, JobKind
from domain.jobs.model import Job, Worker, is_alive
from domain.jobs.states import JobStatus
from domain.jobs.store.jobs import JobRepository
from domain.jobs.transport.job_queue import JobQueue
from domain.operations import VolumeState, job_for
from domain.volumes.attachments.model import Attachment, AttachmentState, Mode, Mount, queue_of
from domain.volumes.attachments.repository import (
    AttachmentFilter,
    AttachmentRepository,
    attached_error,
)
from domain.volumes.model import Volume
from domain.volumes.repository import Release, VolumeRepository


@dataclass(frozen=True)
class NewAttachment:
    """A request for a volume on a node, by one holder there."""

    node: str
    holder: str
    mode: Mode = Mode.READ_WRITE
    #: The directory where the holder wants the file system.
    path: str | None = None


@dataclass(frozen=True)
class Node:
    """A host that uses volumes."""

    name: str
    #: The host of its agent; None if no agent has run there within the hour.
    host: str | None
    is_alive: bool
    seen_at: datetime | None
    #: The number of its attachments in the project.
    attachments: int


@dataclass(frozen=True)
class NodeUsage:
    """How many nodes and attachments there are, of all projects."""

    nodes_alive: int
    by_state: Mapping[AttachmentState, int]
    #: The attachments on nodes whose agent is not alive.
    unattended: int


class AttachmentService:
    """The attachments, for the API."""

    def __init__(self, database: Database, queue: JobQueue, *, max_attempts: int, lease: float) -> None:
        """Create the service; a node is alive for ``lease`` seconds after a heartbeat of its agent."""
        self._database = database
        self._queue = queue
        self._max_attempts = max_attempts
        self._lease = lease

    async def list_attachments(
        self, filters: AttachmentFilter, request: PageRequest, *, project_id: UUID
    ) -> tuple[Page[Attachment], Mapping[UUID, str | None]]:
        """List the attachments of a project, newest first, and the loop devices of their volumes.

        Raises:
            BadCursor: the cursor belongs to another list.
        """
        before = request.before
        async with self._database.transaction() as session:
            attachments = AttachmentRepository(session)
            page = request.page(await attachments.page(filters, project_id, before=before, limit=request.limit))
            return page, await attachments.devices({one.volume_id for one in page.items})

    async def mount_of(self, volume_id: UUID) -> Mount | None:
        """Return where a node has a volume; None if none has."""
        async with self._database.transaction() as session:
            return await AttachmentRepository(session).mount_of(volume_id)

    async def nodes(self, *, project_id: UUID) -> Sequence[Node]:
        """Return the nodes that have an agent, have had one within the hour, or have a volume of the project."""
        alive = func.bool_or(is_alive(self._lease))
        agents = select(Worker.node, func.max(Worker.host), alive, func.max(Worker.heartbeat_at))
        counts = select(Attachment.node, func.count()).where(Attachment.project_id == project_id)
        async with self._database.transaction() as session:
            found = await session.execute(agents.where(Worker.node.is_not(None)).group_by(Worker.node))
            seen = {name: (host, alive_now, at) for name, host, alive_now, at in found}
            used = {row[0]: row[1] for row in await session.execute(counts.group_by(Attachment.node))}
        nodes = []
        for name in sorted({*filter(None, seen), *used}):
            host, alive_now, at = seen.get(name, (None, False, None))
            nodes.append(Node(name, host, alive_now, at, used.get(name, 0)))
        return nodes

    async def usage(self) -> NodeUsage:
        """Return how many nodes are alive, and how many attachments there are, for monitoring."""
        alive = select(Worker.node).where(is_alive(self._lease), Worker.node.is_not(None))
        is_attended = Attachment.node.in_(alive)
        counts = select(Attachment.state, func.count(), func.count().filter(~is_attended)).group_by(Attachment.state)
        async with self._database.transaction() as session:
            nodes = await session.scalar(select(func.count(alive.subquery().c.node.distinct())))
            rows = [(row[0], row[1], row[2]) for row in await session.execute(counts)]
        by_state = dict.fromkeys(AttachmentState, 0) | {state: count for state, count, _ in rows}
        return NodeUsage(nodes or 0, by_state, sum(silent for _, _, silent in rows))

    async def request_attach(self, volume_id: UUID, new: NewAttachment, *, origin: RequestOrigin = ANONYMOUS) -> Job:
        """Accept that a holder gets a volume on a node. If it has it already, the node makes sure of that.

        Raises:
            VolumeNotFound: no such volume.
            VolumeBusy, VolumeUnusable: the volume is not available.
            VolumeAttached: it is attached on another node, or the holder has it in another mode or at another path.
            UnknownNode: no agent has run there lately.
            Invalid: a volume without a file system cannot be at a path.
        """
        async with accepting(self._database, origin) as accepted:
            session, columns = accepted.session, {"max_attempts": self._max_attempts, "created_by": origin.caller}
            accepted.job = await attach_job(session, volume_id, origin.actor.project_id, new, **columns)
        await self._queue.dispatch([accepted.job.message])
        return accepted.job

    async def request_detach(
        self, volume_id: UUID, attachment_id: UUID, *, force: bool = False, origin: RequestOrigin = ANONYMOUS
    ) -> Job:
        """Accept that a holder gives up a volume; by ``force``, that all holders lose it whatever their node does.

        A job of the node that waits for its agent is cancelled by ``force``: the agent may never come back.

        Raises:
            AttachmentNotFound: the volume has no such attachment.
            VolumeNotFound: no such volume.
            VolumeBusy, VolumeUnusable: the volume is not available.
        """
        async with accepting(self._database, origin) as accepted:
            session, columns = accepted.session, {"max_attempts": self._max_attempts, "created_by": origin.caller}
            given_up = await _give_up_nodes_job(session, volume_id, origin) if force else None
            project_id = origin.actor.project_id
            accepted.job = await detach_job(session, volume_id, project_id, attachment_id, force=force, **columns)
        await self._queue.dispatch([accepted.job.message])
        if given_up is not None:
            log_accepted(given_up)
            await self._queue.announce(given_up.id)
        return accepted.job


async def _give_up_nodes_job(session: AsyncSession, volume_id: UUID, origin: RequestOrigin) -> Job | None:
    """Cancel the job that holds a volume if it waits for the agent of a node, and release the volume; return it.

    An earlier attempt may have mounted the volume: the caller must isolate the volume from that node.
    """
    volumes, project_id = VolumeRepository(session), origin.actor.project_id
    holder = (await volumes.get(volume_id, project_id)).job_id
    if holder is None:
        return None
    job = await JobRepository(session).lock(holder, project_id)
    if job.kind not in NODE_KINDS or job.status is not JobStatus.QUEUED:
        return None
    job.request_cancellation(at_once=True)
    await session.flush()
    await volumes.release([Release(volume_id, job.id, None)], VolumeState.AVAILABLE)
    await session.refresh(job)
    await add_entries(session, [entry_of(job, origin.actor)])
    return job


async def attach_job(
    session: AsyncSession, volume_id: UUID, project_id: UUID, new: NewAttachment, **columns: Any
) -> Job:
    """Acquire a volume, and insert its attachment and the job that makes it.

    Raises:
        Refused: as `AttachmentService.request_attach`.
    """
    volume = await VolumeRepository(session).acquire(volume_id, project_id, VolumeState.ATTACHING, uuid7())
    params = await _acquire_attachment(session, volume, new)
    job = job_for(JobKind.VOLUME_ATTACH, params, volume, backend=queue_of(new.node), **columns)
    return await JobRepository(session).add(job)


async def detach_job(
    session: AsyncSession, volume_id: UUID, project_id: UUID, attachment_id: UUID, *, force: bool, **columns: Any
) -> Job:
    """Acquire a volume, and insert the job that takes it from a holder, or by ``force`` from all of them.

    Raises:
        Refused: as `AttachmentService.request_detach`.
    """
    volume = await VolumeRepository(session).acquire(volume_id, project_id, VolumeState.DETACHING, uuid7())
    attachment = await AttachmentRepository(session).get_of(volume.id, attachment_id)
    params = await _leave_attachment(session, volume, attachment, force=force)
    if not force:
        columns["backend"] = queue_of(attachment.node)
    kind = JobKind.VOLUME_ISOLATE if force else JobKind.VOLUME_DETACH
    return await JobRepository(session).add(job_for(kind, params, volume, **columns))


async def _acquire_attachment(session: AsyncSession, volume: Volume, new: NewAttachment) -> Payload:
    """Insert the attachment that a job is to make of a volume that it has acquired; return the params of the job.

    Raises:
        Invalid, VolumeAttached, UnknownNode: as `AttachmentService.request_attach`.
    """
    attachments = AttachmentRepository(session)
    if volume.filesystem is None and new.path is not None:
        raise Invalid("The volume has no file system: it is a device, which has no directory.", field="path")
    if not await attachments.knows_node(new.node):
        raise UnknownNode(new.node)
    found = None
    for other in await attachments.of_volume(volume.id):
        if other.node != new.node:
            raise attached_error(other)
        if other.holder == new.holder:
            found = other
        elif new.path is not None and other.path == new.path:  # its mode would change, and its mount end with this one
            raise attached_error(other)
    if found is not None and (found.mode, found.path) != (new.mode, new.path):
        raise attached_error(found)
    if found is None:
        found = _row(volume, new)
        await attachments.add(found)
    found.generation = volume.version
    return {
        **{name: str(getattr(found, name)) for name in ("node", "holder", "mode")},
        "path": found.path,
        "attachment_id": str(found.id),
        "stored_on": volume.backend,
        "filesystem": volume.filesystem,
        "is_new": found.state is AttachmentState.ATTACHING,
    }


async def _leave_attachment(session: AsyncSession, volume: Volume, attachment: Attachment, *, force: bool) -> Payload:
    """Mark what a job is to take from its holder, of a volume that it has acquired; return the params of the job."""
    attachments = AttachmentRepository(session)
    of_volume = await attachments.of_volume(attachment.volume_id)
    left = of_volume if force else [attachment]
    await attachments.set_states([one.id for one in left], AttachmentState.DETACHING)
    return {
        **{name: getattr(attachment, name) for name in ("node", "holder", "path")},
        "attachment_id": str(attachment.id),
        "filesystem": volume.filesystem,
        "force": force,
    }


def _row(volume: Volume, new: NewAttachment) -> Attachment:
    return Attachment(
        id=uuid7(),
        project_id=volume.project_id,
        volume_id=volume.id,
        node=new.node,
        holder=new.holder,
        mode=new.mode,
        path=new.path,
        state=AttachmentState.ATTACHING,
        generation=volume.version,
    )
