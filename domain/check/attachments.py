"""Compares attachments with jobs, mounts and agents of nodes, and with what is mounted on this host if it is a node."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import ColumnElement, Double, Select, cast, exists, func, select, union
from sqlalchemy.ext.asyncio import AsyncSession

from domain.check.findings import CheckCode, Finding
from domain.db.database import Database
from domain.db.sql import from_now
from domain.errors import StorageError
from domain.jobs.kinds import NODE_KINDS, JobKind
from domain.jobs.model import Job, Worker
from domain.jobs.states import LIVE
from domain.volumes.attachments.model import Attachment, AttachmentState, Mount
from domain.volumes.attachments.repository import AttachmentRepository
from domain.volumes.model import Volume

#: A node counts as lost when its agent's last heartbeat is this many leases ago.
_LOST_LEASES: Final = 10
#: Seconds until a difference between this host and the attachments is looked at again; its agent looks each second.
_SECOND_LOOK_SECONDS: Final = 3.0
_CHANGING_KINDS: Final = (*NODE_KINDS, JobKind.VOLUME_ISOLATE)
_DETACH_BY_FORCE: Final = "start `cistern node` there, or detach by force"


@dataclass(frozen=True)
class HostView:
    """What a host has of the volumes of its node."""

    node: str
    #: Returns where each volume is: the mount point, or the device of one without a file system.
    found: Callable[[], Awaitable[Mapping[UUID, str]]]


#: A finding, and what repairs it, or returns False if there is nothing to repair any more.
_Repairable = tuple[Finding, Callable[[], Awaitable[bool]]]


class _Here(NamedTuple):
    """An attachment on this host's node."""

    volume_id: UUID
    name: str
    state: AttachmentState
    is_changing: bool


class Attachments:
    """Checks all attachments and mounts. Whatever changes them holds the volume by a job, or has its row locked."""

    def __init__(self, database: Database, *, lease: float, host: HostView | None = None) -> None:
        """``lease`` in seconds; ``host`` is this host if it is a node."""
        self._database = database
        self._lost_seconds = _LOST_LEASES * lease
        self._host = host

    async def findings(self, checked: Counter[str], *, repair: bool) -> AsyncIterator[Finding]:
        """Yield the findings, repaired where possible if ``repair``."""
        [(count,)] = await self._read(select(func.count(Attachment.id)))
        if count:
            checked["attachments"] += count
        for finding, repairing in [*await self._without_job(), *await self._unused()]:
            if not repair:
                yield finding
            elif await repairing():
                yield replace(finding, repaired=True)
        async for finding in self._nodes():
            yield finding
        async for finding in self._on_this_host():
            yield finding

    async def _without_job(self) -> list[_Repairable]:
        found: list[_Repairable] = []
        for volume_id, name, attachment_id, state in await self._read(_unfinished()):
            problem = f"of volume {volume_id} is {state}, but no live job attaches or detaches it"
            finding = Finding(CheckCode.NO_JOB, f"attachment {attachment_id}", problem, name=name)
            found.append((finding, partial(self._bring_to_rest, volume_id, attachment_id)))
        return found

    async def _unused(self) -> list[_Repairable]:
        found: list[_Repairable] = []
        for volume_id, name, node in await self._read(_unused_mounts()):
            problem = f"is recorded as mounted on node {node!r}, but has no attachment"
            finding = Finding(CheckCode.NOT_ATTACHED, f"volume {volume_id}", problem, name=name)
            found.append((finding, partial(self._forget_mount, volume_id)))
        return found

    async def _nodes(self) -> AsyncIterator[Finding]:
        """Find volumes that are on two nodes, and attachments on nodes whose agents are lost."""
        for volume_id, name, nodes in await self._read(_on_two_nodes()):
            problem = f"is on the nodes {', '.join(map(repr, nodes))} at once, which may destroy its file system"
            remedy = "end its use, then detach by force"
            yield Finding(CheckCode.TWO_NODES, f"volume {volume_id}", problem, remedy, name=name)
        for node, count, silent in await self._read(_of_lost_nodes(self._lost_seconds)):
            seen = "has not been seen for an hour" if silent is None else f"was last seen {silent:.0f} s ago"
            problem = f"has attachments ({count}), but its agent {seen}"
            yield Finding(CheckCode.NO_NODE, f"node {node!r}", problem, _DETACH_BY_FORCE)

    async def _on_this_host(self) -> AsyncIterator[Finding]:
        """Compare the kernel of this host with the attachments, twice: its agent may be at work."""
        if self._host is None:
            return
        try:
            first = await self._differences(self._host)
            if first:
                await asyncio.sleep(_SECOND_LOOK_SECONDS)
            second = await self._differences(self._host) if first else {}
        except StorageError as error:
            yield Finding(CheckCode.UNREADABLE, f"node {self._host.node!r}", error.message, "repair this host")
            return
        for key in sorted(first.keys() & second.keys(), key=str):
            yield second[key]

    async def _differences(self, host: HostView) -> dict[tuple[CheckCode, UUID], Finding]:
        found = await host.found()
        rows = [_Here(*row) for row in await self._read(_on_node(host.node))]
        attached = {one.volume_id: one for one in rows}
        findings = [
            self._not_attached(volume_id, where) for volume_id, where in found.items() if volume_id not in attached
        ]
        for one in attached.values():
            if one.volume_id not in found and one.state is AttachmentState.ATTACHED and not one.is_changing:
                problem = f"is attached to this node, {host.node!r}, but is not mounted here"
                remedy = "start `cistern node`, which mounts it again; its log says what is in the way"
                subject = f"volume {one.volume_id}"
                findings.append(
                    (one.volume_id, Finding(CheckCode.NOT_MOUNTED, subject, problem, remedy, name=one.name))
                )
        return {(finding.code, volume_id): finding for volume_id, finding in findings}

    @staticmethod
    def _not_attached(volume_id: UUID, where: str) -> tuple[UUID, Finding]:
        problem = f"is on this host at {where}, but is not attached to this node"
        remedy = "start `cistern node`, which lets go of it; end what still uses it"
        return volume_id, Finding(CheckCode.NOT_ATTACHED, f"volume {volume_id}", problem, remedy)

    # --- repairs -----------------------------------------------------------------------------------------------

    async def _bring_to_rest(self, volume_id: UUID, attachment_id: UUID) -> bool:
        """Leave what a failed job would have left; return False if a job has begun meanwhile."""
        async with self._database.transaction() as session:
            if not await _lock_unheld(session, volume_id):
                return False
            attachments = AttachmentRepository(session)
            found = [one for one in await attachments.of_volume(volume_id) if one.id == attachment_id]
            for one in found:
                if one.state is AttachmentState.ATTACHING:
                    await attachments.remove([one.id])
                    await attachments.remove_unused_mounts([volume_id])
                else:
                    await attachments.set_states([one.id], AttachmentState.ATTACHED)
        return bool(found)

    async def _forget_mount(self, volume_id: UUID) -> bool:
        async with self._database.transaction() as session:
            if not await _lock_unheld(session, volume_id):
                return False
            await AttachmentRepository(session).remove_unused_mounts([volume_id])
        return True

    async def _read(self, query: Any) -> list[Any]:
        async with self._database.transaction() as session:
            return list(await session.execute(query))


async def _lock_unheld(session: AsyncSession, volume_id: UUID) -> bool:
    """Lock a volume, so that no job can begin with it; return False if one has begun."""
    await session.execute(select(Volume.id).where(Volume.id == volume_id).with_for_update())
    return not await session.scalar(select(_is_changed(volume_id)))


def _is_changed(volume_id: Any) -> ColumnElement[bool]:
    """Return the condition that a live job attaches or detaches the volume."""
    return exists().where(Job.volume_id == volume_id, Job.status.in_(LIVE), Job.kind.in_(_CHANGING_KINDS))


def _unfinished() -> Select[UUID, str, UUID, AttachmentState]:
    query = select(Attachment.volume_id, Volume.name, Attachment.id, Attachment.state)
    query = query.join(Volume, Volume.id == Attachment.volume_id)
    return query.where(Attachment.state != AttachmentState.ATTACHED, ~_is_changed(Attachment.volume_id))


def _unused_mounts() -> Select[UUID, str, str]:
    query = select(Mount.volume_id, Volume.name, Mount.node).join(Volume, Volume.id == Mount.volume_id)
    is_used = exists().where(Attachment.volume_id == Mount.volume_id)
    return query.where(~is_used, ~_is_changed(Mount.volume_id))


def _on_two_nodes() -> Select[UUID, str, Any]:
    both = union(select(Attachment.volume_id, Attachment.node), select(Mount.volume_id, Mount.node)).subquery()
    query = select(both.c.volume_id, Volume.name, func.array_agg(both.c.node.distinct()))
    query = query.join(Volume, Volume.id == both.c.volume_id).group_by(both.c.volume_id, Volume.name)
    return query.having(func.count(both.c.node) > 1)


def _of_lost_nodes(seconds: float) -> Select[str, int, float | None]:
    """Select the nodes with attachments, and for how many seconds their agents have been silent; NULL: forgotten."""
    seen = select(Worker.node, func.max(Worker.heartbeat_at).label("at")).group_by(Worker.node).subquery()
    silent = cast(func.extract("epoch", func.now() - seen.c.at), Double)
    query = select(Attachment.node, func.count(), func.max(silent)).outerjoin(seen, seen.c.node == Attachment.node)
    query = query.where(seen.c.at.is_(None) | (seen.c.at < from_now(-seconds)))
    return query.group_by(Attachment.node).order_by(Attachment.node)


def _on_node(node: str) -> Select[UUID, str, AttachmentState, bool]:
    query = select(Attachment.volume_id, Volume.name, Attachment.state, _is_changed(Attachment.volume_id))
    return query.join(Volume, Volume.id == Attachment.volume_id).where(Attachment.node == node)
