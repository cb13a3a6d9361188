"""Growing the file system of a volume that nobody has mounted: its failure is written down, and fails no job.

The volume has its new size by then. That its file system has not is a state with a reason, which the next try ends.
"""

from typing import Any
from uuid import UUID

import structlog

from domain import metrics
from domain.errors import StorageError
from domain.storage.context import Grant, Stopped
from domain.storage.driver import StorageDriver
from domain.storage.errors import BackendUnavailable, FenceRefused, StorageBusy

log = structlog.get_logger(__name__)


async def grow(driver: StorageDriver, volume_id: UUID, filesystem: str, size: int, grant: Grant) -> dict[str, Any]:
    """Grow the file system of a volume to its ``size`` in bytes; return what the job reports of it.

    Raises:
        Stopped, StorageBusy, BackendUnavailable, FenceRefused: this attempt is over, a later one may grow it.
    """
    try:
        await driver.grow_filesystem(volume_id, filesystem, grant)
    except (Stopped, StorageBusy, BackendUnavailable, FenceRefused):
        raise
    except StorageError as error:
        metrics.current().growth_failed()
        log.warning("filesystem.not_grown", volume_id=str(volume_id), error=error.message)
        return {"filesystem_error": error.message}
    return {"filesystem_grown_to": size}
