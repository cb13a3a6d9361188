"""The work on one item of a bulk job. Every failure is returned as a value, so that it cannot affect other items."""

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


async def perform(operation: BulkOperation, work: ItemWork, grant: Grant) -> Result | None:
    """Do the storage work and return its result.

    Return None if the item must stay claimed: the attempt is being stopped, or another process holds the storage lock.
    """
    item_grant = _grant_for(work, grant)
    try:
        size = await _with_retries(operation, work, item_grant)
    except (Stopped, StorageBusy):
        return None
    except FenceRefused as error:
        # Either this attempt has lost the lane, and `record` will drop this result; or it holds the lane, and the
        # fence stored on the backend is ahead of the rows, which no retry can fix.
        return Result(work.ended(ItemStatus.FAILED, error.code, error.message))
    except CisternError as error:
        return await _failed(operation, work, item_grant, error)
    except Exception:
        log.exception("volume.handler_error", volume_id=str(work.volume_id))
        return await _failed(operation, work, item_grant, CisternError())
    return Result(work.ended(ItemStatus.SUCCEEDED, operation.success_code), size)


async def fail(operation: BulkOperation, work: ItemWork, grant: Grant) -> Result | None:
    """Fail the item: seal its volume and report what other lanes left, without doing the work."""
    return await _failed(operation, work, _grant_for(work, grant), LanesLost())


def skip(work: ItemWork) -> Result:
    """Skip the item of a cancelled job. No attempt has started on it, so there is nothing to seal."""
    return Result(work.ended(ItemStatus.SKIPPED, ItemCode.CANCELLED)._replace(snapshot_id=None))


def _grant_for(work: ItemWork, grant: Grant) -> Grant:
    return grant.for_item(Fence(work.version, grant.fence.epoch))


async def _with_retries(operation: BulkOperation, work: ItemWork, grant: Grant) -> int | None:
    """Do the storage work, with up to three tries if the errors are transient."""
    for attempt in range(1, _MAX_TRIES):
        try:
            return await operation.perform(work, grant)
        except StorageBusy:
            raise
        except TransientStorageError:
            await asyncio.sleep(_PAUSE_SECONDS * attempt)
    return await operation.perform(work, grant)


async def _failed(operation: BulkOperation, work: ItemWork, grant: Grant, error: CisternError) -> Result | None:
    """Bar earlier attempts from publishing, and end the item with what is then found on the backend.

    Return None if another process holds the storage lock: the volume cannot be sealed yet and must stay with the lane.
    """
    log.debug("volume.failed", volume_id=str(work.volume_id), code=error.code)
    update = work.ended(ItemStatus.FAILED, error.code, error.message)
    try:
        return await operation.seal(work, update, grant)
    except StorageBusy:
        return None
    except CisternError as seal_error:  # from the backend, or because it is no longer configured
        log.warning("storage.state_unknown", volume_id=str(work.volume_id), error=seal_error.message)
        return Result(update)
