"""The kinds of bulk jobs, and of their parts."""

from typing import Final

EXPAND: Final = "bulk.expand"
SNAPSHOT: Final = "bulk.snapshot"
#: Kinds of jobs that have a ledger.
BULK_KINDS: Final = frozenset({EXPAND, SNAPSHOT})
#: A part of any of them.
LANE: Final = "bulk.lane"
