"""What a node must know of the volumes that it has, and what it reports of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import ColumnElement, select

from domain.db.database import Database
from domain.jobs.model import Worker, is_alive
from domain.operations import VolumeState
from domain.volumes.attachments.model import Attachment, AttachmentState, FilesystemReport, Mode, Mount
from domain.volumes.attachments.repository import AttachmentRepository
from domain.volumes.model import Volume
from domain.volumes.repository import VolumeRepository


@dataclass(frozen=True)
class Holding:
    """One holder of a volume."""

    path: str | None
    mode: Mode


@dataclass(frozen=True)
class NodeVolume:
    """A volume that a node has, for its holders; ``size`` in bytes."""

    id: UUID
    size: int
    filesystem: str | None
    #: The size up to which the node has grown the device and the file system.
    grown_to: int | None
    #: The backend that stores it.
    backend: str
    holders: Sequence[Holding]
    #: Whether a job is about to attach or detach it.
    is_changing: bool


class NodeVolumes:
    """The volumes of one node."""

    def __init__(self, database: Database, node: str) -> None:
        self._database = database
        self._node = node

    async def all(self) -> Mapping[UUID, NodeVolume]:
        """Return the volumes that have an attachment on the node, also one that a job is about to make or to end.

        Raises:
            DatabaseUnavailable: PostgreSQL does not answer.
        """
        return await self._read(Attachment.node == self._node)

    async def get(self, volume_id: UUID) -> NodeVolume | None:
        """Return one of them; None if the node has it no longer.

        Raises:
            DatabaseUnavailable: PostgreSQL does not answer.
        """
        found = await self._read((Attachment.node == self._node) & (Attachment.volume_id == volume_id))
        return found.get(volume_id)

    async def other_host(self, host: str, *, lease: float) -> str | None:
        """Return another host with a live agent of this node, None if there is none; ``lease`` in seconds."""
        alive = (Worker.node == self._node) & is_alive(lease)
        async with self._database.transaction() as session:
            other: str | None = await session.scalar(select(Worker.host).where(alive, Worker.host != host).limit(1))
        return other

    async def _read(self, condition: ColumnElement[bool]) -> Mapping[UUID, NodeVolume]:
        query = select(Attachment, Volume).join(Volume, Volume.id == Attachment.volume_id).where(condition)
        async with self._database.transaction() as session:
            rows = [(row[0], row[1]) for row in await session.execute(query)]
        attachments: dict[UUID, list[Attachment]] = {}
        for attachment, volume in rows:
            attachments.setdefault(volume.id, []).append(attachment)
        return {volume.id: _node_volume(volume, attachments[volume.id]) for _, volume in rows}

    async def mounted(self, volume_id: UUID, device: str, path: str | None) -> None:
        """Record where the node has mounted a volume again, unless the volume has left it meanwhile."""
        async with self._database.transaction() as session:
            await VolumeRepository(session).lock_many([volume_id])
            attachments = AttachmentRepository(session)
            here = [one for one in await attachments.of_volume(volume_id) if one.node == self._node]
            if here:
                generation = max(one.generation for one in here)
                mount = {"node": self._node, "device": device, "path": path, "generation": generation}
                await attachments.record_mount(volume_id, mount)

    async def report(self, volume_id: UUID, report: FilesystemReport) -> None:
        """Record what the node knows of a file system, unless the volume has left the node meanwhile."""
        async with self._database.transaction() as session:
            mounted = select(Mount).where(Mount.volume_id == volume_id, Mount.node == self._node)
            if await session.scalar(mounted.with_for_update()) is not None:
                await AttachmentRepository(session).record_report(volume_id, report)


def _node_volume(volume: Volume, attachments: Sequence[Attachment]) -> NodeVolume:
    attached = [one for one in attachments if one.state is AttachmentState.ATTACHED]
    return NodeVolume(
        volume.id,
        volume.size,
        volume.filesystem,
        volume.filesystem_grown_to,
        volume.backend,
        [Holding(one.path, one.mode) for one in attached],
        is_changing=volume.state in (VolumeState.ATTACHING, VolumeState.DETACHING),
    )
