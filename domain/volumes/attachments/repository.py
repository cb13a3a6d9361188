"""Queries on the tables of attachments and mounts. Takes a session, never commits."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from sqlalchemy import case, delete, exists, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from domain.errors import AttachmentNotFound, VolumeAttached
from domain.jobs.model import Worker
from domain.volumes.attachments.model import Attachment, AttachmentState, FilesystemReport, Mount
from domain.volumes.model import Volume

_UNSYNCHRONIZED: Final = {"synchronize_session": False}


@dataclass(frozen=True)
class AttachmentFilter:
    """Filters of a list of attachments; None matches any."""

    volume_id: UUID | None = None
    node: str | None = None
    holder: str | None = None


class AttachmentRepository:
    """The attachments and mounts, within one transaction.

    A change of those of a volume needs a job that holds the volume, or a lock of its row.
    """

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def of_volume(self, volume_id: UUID) -> Sequence[Attachment]:
        """Read the attachments of a volume, the oldest first."""
        query = select(Attachment).where(Attachment.volume_id == volume_id).order_by(Attachment.id)
        return (await self._session.scalars(query)).all()

    async def get_of(self, volume_id: UUID, attachment_id: UUID) -> Attachment:
        """Read one attachment of a volume.

        Raises:
            AttachmentNotFound: no such attachment.
        """
        query = select(Attachment).where(Attachment.id == attachment_id, Attachment.volume_id == volume_id)
        found = await self._session.scalar(query)
        if found is None:
            raise AttachmentNotFound(attachment_id)
        return found

    async def page(
        self, filters: AttachmentFilter, project_id: UUID, *, before: UUID | None, limit: int
    ) -> Sequence[Attachment]:
        """Read up to ``limit`` + 1 attachments of a project, newest first; one more shows that there is a next page."""
        query = select(Attachment).where(Attachment.project_id == project_id)
        query = query.order_by(Attachment.id.desc()).limit(limit + 1)
        for name, value in vars(filters).items():
            if value is not None:
                query = query.where(getattr(Attachment, name) == value)
        if before is not None:
            query = query.where(Attachment.id < before)
        return (await self._session.scalars(query)).all()

    async def refuse_if_attached(self, volume_id: UUID) -> None:
        """Require that a volume has no attachment.

        Raises:
            VolumeAttached: it has one.
        """
        for attachment in (await self.of_volume(volume_id))[:1]:
            raise attached_error(attachment)

    async def knows_node(self, node: str) -> bool:
        """Return whether a node has an agent, or has had one within the hour, or has a volume."""
        known = exists().where(Worker.node == node) | exists().where(Attachment.node == node)
        return bool(await self._session.scalar(select(known)))

    async def add(self, attachment: Attachment) -> None:
        """Insert an attachment."""
        self._session.add(attachment)
        await self._session.flush()

    async def set_states(self, attachment_ids: Collection[UUID], state: AttachmentState) -> None:
        """Move attachments to a state."""
        await self._session.execute(
            update(Attachment).where(Attachment.id.in_(attachment_ids)).values(state=state, updated_at=func.now())
        )

    async def keep(self, volume_id: UUID) -> None:
        """Let the holders of a volume have it after all."""
        leaving = (Attachment.volume_id == volume_id) & (Attachment.state == AttachmentState.DETACHING)
        query = update(Attachment).where(leaving)
        await self._session.execute(query.values(state=AttachmentState.ATTACHED, updated_at=func.now()))

    async def remove(self, attachment_ids: Collection[UUID]) -> None:
        """Delete attachments."""
        await self._session.execute(delete(Attachment).where(Attachment.id.in_(attachment_ids)))

    async def remove_of(self, volume_ids: Collection[UUID]) -> None:
        """Delete all attachments and the mounts of volumes."""
        await self._session.execute(delete(Attachment).where(Attachment.volume_id.in_(volume_ids)))
        await self.remove_mounts(volume_ids)

    async def record_report(self, volume_id: UUID, report: FilesystemReport, *, is_last: bool = False) -> None:
        """Record what a node knows of a volume's file system; what it does not know stays as it is.

        ``is_last``: it is unmounted now. If it could not be measured before, its use is unknown.
        """
        await self._session.execute(
            update(Volume)
            .where(Volume.id == volume_id)
            .values(_reported(report, is_last=is_last))
            .execution_options(**_UNSYNCHRONIZED)
        )

    # --- mounts ----------------------------------------------------------------------------------------------

    async def record_mount(self, volume_id: UUID, columns: Mapping[str, Any]) -> None:
        """Record where a node has a volume; a freeze that was asked for before is forgotten."""
        values = {**columns, "freeze_id": None, "freeze_until": None, "freeze_state": None}
        query = insert(Mount).values(volume_id=volume_id, **values)
        await self._session.execute(query.on_conflict_do_update(index_elements=["volume_id"], set_=values))

    async def remove_mounts(self, volume_ids: Collection[UUID]) -> None:
        """Forget the mounts of volumes."""
        await self._session.execute(delete(Mount).where(Mount.volume_id.in_(volume_ids)))

    async def remove_unused_mounts(self, volume_ids: Collection[UUID]) -> None:
        """Forget the mounts of those of these volumes that have no attachment."""
        used = exists().where(Attachment.volume_id == Mount.volume_id)
        await self._session.execute(delete(Mount).where(Mount.volume_id.in_(volume_ids), ~used))

    async def mount_of(self, volume_id: UUID) -> Mount | None:
        """Read where a node has a volume; None if none has."""
        return await self._session.scalar(select(Mount).where(Mount.volume_id == volume_id))

    async def devices(self, volume_ids: Collection[UUID]) -> Mapping[UUID, str | None]:
        """Return the loop devices of those of these volumes that a node has."""
        query = select(Mount.volume_id, Mount.device).where(Mount.volume_id.in_(volume_ids))
        return {row.volume_id: row.device for row in await self._session.execute(query)}


async def attached_ones(session: AsyncSession | AsyncConnection, volume_ids: Collection[UUID]) -> set[UUID]:
    """Return which of these volumes are attached; that does not change while a job holds them."""
    query = select(Attachment.volume_id).where(Attachment.volume_id.in_(volume_ids))
    return set((await session.scalars(query)).all())


def attached_error(attachment: Attachment) -> VolumeAttached:
    """Build the error that says who has the volume, and where."""
    return VolumeAttached(node=attachment.node, holder=attachment.holder, since=attachment.created_at)


def _reported(report: FilesystemReport, *, is_last: bool) -> dict[str, Any]:
    """Return the new values of the columns; what a report does not know stays as it is."""
    columns = {
        "filesystem_size": report.size,
        "filesystem_used": report.used,
        "inodes": report.inodes,
        "inodes_used": report.inodes_used,
        "filesystem_grown_to": report.grown_to,
    }
    values: dict[str, Any] = {name: value for name, value in columns.items() if value is not None}
    if report.available is not None:  # a file system without room uses all that it has grown to
        grown_to = func.coalesce(report.grown_to, Volume.filesystem_grown_to)
        used = case((grown_to.is_not(None), func.greatest(grown_to - report.available, 0)))
        values |= {"used": used, "used_at": func.now()}
    elif is_last:
        values |= {"used": None, "used_at": None}
    if report.grown_to is not None or report.error is not None:
        values["filesystem_error"] = report.error
    return values | {"updated_at": Volume.updated_at}
