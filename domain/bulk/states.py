"""The statuses of an item of a bulk job, the table of moves between them, and the codes that give the reason."""

import enum
from typing import Final


class ItemStatus(enum.StrEnum):
    """The status of one volume in one bulk job."""

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
    """The reason for an item's status; a failed item may also have the code of a storage error."""

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
    ALREADY_LARGE_ENOUGH = "already-large-enough"
    NAME_TAKEN = "name-taken"
    CANCELLED = "cancelled"
    LANES_LOST = "lanes-lost"


def unchanged_status(code: ItemCode) -> ItemStatus:
    """Return the status of an item whose volume stays unchanged: FAILED if a user must fix something, else SKIPPED."""
    return ItemStatus.FAILED if code is ItemCode.POLICY_UNUSABLE else ItemStatus.SKIPPED
