"""Sizes of volumes within the range that an orchestrator gives."""

from typing import Final

from api.csi import csi_pb2 as csi
from api.csi.errors import out_of_range
from domain.volumes.model import MAX_SIZE, rounded_up

#: Of a volume for which no size is required.
DEFAULT_SIZE: Final = 2**30


def size_within(capacity: csi.CapacityRange, minimum: int, default: int = 0) -> int:
    """Return the smallest size that a range allows, in bytes; at least ``minimum``, and ``default`` if any will do.

    Raises:
        CallRejected: the range allows none.
    """
    required, limit = require_range(capacity)
    if not required:
        required = min(default, limit) if limit else default
    size = rounded_up(max(required, minimum, 1))
    if size > MAX_SIZE:
        raise out_of_range(f"a volume can have at most {MAX_SIZE} bytes")
    if limit and size > limit:
        raise out_of_range(f"the volume must have {size} bytes, more than the limit of {limit}")
    return size


def is_within(size: int, capacity: csi.CapacityRange) -> bool:
    """Return whether a volume of this size satisfies a range."""
    return capacity.required_bytes <= size and not 0 < capacity.limit_bytes < size


def require_range(capacity: csi.CapacityRange) -> tuple[int, int]:
    """Return what a range requires and its limit.

    Raises:
        CallRejected: it contradicts itself.
    """
    required, limit = capacity.required_bytes, capacity.limit_bytes
    if min(required, limit) < 0 or 0 < limit < required:
        raise out_of_range(f"no size has at least {required} and at most {limit} bytes")
    return required, limit
