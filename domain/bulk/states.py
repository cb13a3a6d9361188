"""The states of an item of a bulk job and the moves between them, and the codes that say why."""

import enum
from typing import Final


class ItemStatus(enum.StrEnum):
    """What has become of one volume in one bulk job."""

    PENDING = "pending"
    CLAIMED = "claimed"
    SUCCEEDED = "succeeded"
    SKIPPED = "skipped"
    FAILED = "failed"


MOVES: Final[dict[ItemStatus, frozenset[ItemStatus]]] = {
    ItemStatus.PENDING: frozenset({ItemStatus.CLAIMED, ItemStatus.SKIPPED, ItemStatus.FAILED}),
    ItemStatus.CLAIMED: frozenset({ItemStatus.PENDING, ItemStatus.SUCCEEDED, ItemStatus.SKIPPED, ItemStatus.FAILED}),
    ItemStatus.SUCCEEDED: frozenset(),
    ItemStatus.SKIPPED: frozenset(),
    ItemStatus.FAILED: frozenset(),
}

FINISHED: Final = frozenset(status for status, moves in MOVES.items() if not moves)


class ItemCode(enum.StrEnum):
    """Why an item ended as it did; a failed one may also carry the code of a storage error."""

    EXPANDED = "expanded"
    SNAPSHOTTED = "snapshotted"
    VOLUME_BUSY = "volume-busy"
    VOLUME_GONE = "volume-gone"
    VOLUME_UNUSABLE = "volume-unusable"
    BELOW_THRESHOLD = "below-threshold"
    USAGE_UNKNOWN = "usage-unknown"
    AT_LIMIT = "at-limit"
    NO_POLICY = "no-policy"
    POLICY_UNUSABLE = "policy-unusable"
    ALREADY_THERE = "already-there"
    NAME_TAKEN = "name-taken"
    CANCELLED = "cancelled"
    LANES_LOST = "lanes-lost"


def ending_of(code: ItemCode) -> ItemStatus:
    """How an item ends whose volume stays as it is; what somebody has to mend is a failure."""
    return ItemStatus.FAILED if code is ItemCode.POLICY_UNUSABLE else ItemStatus.SKIPPED
