"""The file systems of volumes: which are grown by the jobs of workers, and what these found out."""

from collections.abc import Iterable, Mapping
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from domain.errors import Invalid
from domain.storage.filesystems import GROWN_OFFLINE
from domain.storage_work import GROW_FILESYSTEM
from domain.volumes.attachments.repository import attached_ones
from domain.volumes.model import Volume, VolumeRow


async def grown_offline(
    session: AsyncSession | AsyncConnection, volumes: Iterable[Volume | VolumeRow]
) -> Mapping[UUID, str]:
    """Return the file systems, by volume, that an expansion of these volumes has to grow.

    This stays true of a volume as long as its row is locked, its version is the same, or a job holds it: it is attached
    by a job. Most volumes have no such file system, and need no query.
    """
    candidates = {one.id: one.filesystem for one in volumes if one.filesystem is not None}
    candidates = {id_: filesystem for id_, filesystem in candidates.items() if filesystem in GROWN_OFFLINE}
    attached = await attached_ones(session, candidates) if candidates else set()
    return {id_: filesystem for id_, filesystem in candidates.items() if id_ not in attached}


def growth_params(filesystem: str | None) -> dict[str, str]:
    """Return the parameters of a job that grows a file system, or none."""
    return {} if filesystem is None else {GROW_FILESYSTEM: filesystem}


def growth_of_new_bytes(volume: Volume) -> dict[str, str]:
    """Return the parameters of a job that gives a volume, which nobody has, the bytes of a snapshot.

    Its file system may be smaller than the volume then, and it is not known by how much.
    """
    return growth_params(volume.filesystem if volume.filesystem in GROWN_OFFLINE else None)


def adopt_filesystem(clone: Volume, source: Volume) -> None:
    """Give a new volume the file system of the volume whose bytes it begins with. It is not known how large it is.

    Raises:
        Invalid: another one was requested.
    """
    if clone.filesystem not in (None, source.filesystem):
        has = source.filesystem or "no file system"
        raise Invalid(f"A clone has the file system of its source, which has {has}.", field="filesystem")
    clone.filesystem = source.filesystem
    clone.filesystem_grown_to = None if source.filesystem is None else 0
