"""The kinds of bulk jobs and of their child jobs, the lanes."""

from typing import Final

EXPAND: Final = "bulk.expand"
SNAPSHOT: Final = "bulk.snapshot"
#: The kinds of jobs that have a ledger.
BULK_KINDS: Final = frozenset({EXPAND, SNAPSHOT})
#: The child jobs of all of them.
LANE: Final = "bulk.lane"
