"""Builders of partly written 10 MiB volumes on disk, and growth policies for them."""

from pathlib import Path
from typing import Any
from uuid import UUID

from domain.db.base import DEFAULT_PROJECT
from domain.services import Services
from domain.volumes.service import NewVolume
from tests.support.bulk import MIB, ended

FIFTH = {"usage_above": 80, "percent": 20, "up_to": 20 * MIB}
TO_ELEVEN = {"usage_above": 80, "percent": 50, "up_to": 11 * MIB}
BY_THREE = {"usage_above": 80, "by": 3 * MIB, "up_to": 20 * MIB}


async def a_volume(services: Services, name: str, autogrow: dict[str, Any] | None = None, *, used: int = 0) -> UUID:
    """Create a volume with ``used`` MiB written; requires a running worker."""
    job = await ended(
        services, await services.volumes.request_create(NewVolume(name, 10 * MIB, columns={"autogrow": autogrow}))
    )
    assert job.volume_id is not None
    _write(
        Path(str(services.volumes.path(await services.volumes.get(job.volume_id, project_id=DEFAULT_PROJECT)))), used
    )
    return job.volume_id


def _write(path: Path, mebibytes: int) -> None:
    with path.open("r+b") as data:
        data.write(b"x" * mebibytes * MIB)


async def size(services: Services, volume_id: UUID) -> int:
    """The size of a volume's row in MiB, after checking that its file has the same size."""
    volume = await services.volumes.get(volume_id, project_id=DEFAULT_PROJECT)
    assert Path(str(services.volumes.path(volume))).stat().st_size == volume.size
    return volume.size // MIB
