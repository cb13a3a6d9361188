"""The work on one volume of a bulk job: whatever goes wrong is a value, so that it stops no other."""

import asyncio
from typing import Final

import structlog

from domain.bulk.operation import BulkOperation, ItemWork, Result
from domain.bulk.states import ItemCode, ItemStatus
from domain.errors import CisternError
from domain.storage.context import Fence, Grant, Stopped
from domain.storage.errors import FenceRefused, StorageBusy, TransientStorageError

_MAX_TRIES: Final = 3
_PAUSE_SECONDS: Final = 0.2

log = structlog.get_logger(__name__)


class LanesLost(CisternError):
    """Every lane that worked on this volume died or failed."""

    code = ItemCode.LANES_LOST


async def perform(operation: BulkOperation, task: ItemWork, grant: Grant) -> Result | None:
    """Do the work. None: it is left as it is, because the attempt is to end, or because somebody holds the lock."""
    part = _grant_for(task, grant)
    try:
        size = await _with_retries(operation, task, part)
    except (Stopped, StorageBusy):
        return None
    except FenceRefused as error:  # we have the lane, or nothing of this is recorded: so the disk is ahead of us
        return Result(task.ended(ItemStatus.FAILED, error.code, error.message))
    except CisternError as error:
        return await _failed(operation, task, part, error)
    except Exception:
        log.exception("volume.handler_error", volume_id=str(task.volume_id))
        return await _failed(operation, task, part, CisternError())
    return Result(task.ended(ItemStatus.SUCCEEDED, operation.success_code), size)


async def fail(operation: BulkOperation, task: ItemWork, grant: Grant) -> Result | None:
    """Find out what other lanes have left of a volume, without trying again."""
    return await _failed(operation, task, _grant_for(task, grant), LanesLost())


def skip(task: ItemWork) -> Result:
    """Let a volume be on which nobody has begun to work, because the job was cancelled."""
    return Result(task.ended(ItemStatus.SKIPPED, ItemCode.CANCELLED)._replace(snapshot_id=None))


def _grant_for(task: ItemWork, grant: Grant) -> Grant:
    return grant.for_item(Fence(task.version, grant.fence.epoch))


async def _with_retries(operation: BulkOperation, task: ItemWork, grant: Grant) -> int | None:
    """Do the storage work; a failure that may pass gets a second and a third chance on the spot."""
    for attempt in range(1, _MAX_TRIES):
        try:
            return await operation.perform(task, grant)
        except StorageBusy:
            raise
        except TransientStorageError:
            await asyncio.sleep(_PAUSE_SECONDS * attempt)
    return await operation.perform(task, grant)


async def _failed(operation: BulkOperation, task: ItemWork, grant: Grant, error: CisternError) -> Result | None:
    """Shut earlier attempts out, see what is on the storage, and let the volume go with that."""
    log.debug("volume.failed", volume_id=str(task.volume_id), code=error.code)
    entry = task.ended(ItemStatus.FAILED, error.code, error.message)
    try:
        return await operation.seal(task, entry, grant)
    except StorageBusy:
        return None
    except CisternError as unknown:  # of the storage, or a backend that is configured no more
        log.warning("storage.state_unknown", volume_id=str(task.volume_id), error=unknown.message)
        return Result(entry)
