"""What the check can find, and how a finding is shown."""

import enum
import math
from dataclasses import dataclass
from typing import Final

from domain.printable import printable

REPAIR_COMMAND: Final = "run `cistern check --repair`"


def leased_remedy(seconds: float) -> str:
    """Return what to do about a job whose lease ends in so many seconds."""
    return f"a worker may be working on it: check again in {math.ceil(seconds)} s, or when the job has ended"


class CheckCode(enum.StrEnum):
    """The kind of a finding; stable, for scripts."""

    DATA_MISSING = "data-missing"
    SIZE_DIFFERS = "size-differs"
    FENCE_BEHIND = "fence-behind"
    NO_ROW = "no-row"
    LEFTOVER = "leftover"
    NO_JOB = "no-job"
    NOT_ATTACHED = "not-attached"
    NOT_HELD = "not-held"
    NO_WORKER = "no-worker"
    ITEMS_UNFINISHED = "items-unfinished"
    MISCOUNTED = "miscounted"
    NOT_MOUNTED = "not-mounted"
    TWO_NODES = "two-nodes"
    NO_NODE = "no-node"
    NO_LANES = "no-lanes"
    NO_BACKEND = "no-backend"
    UNREADABLE = "unreadable"


@dataclass(frozen=True)
class Finding:
    """One inconsistency. ``remedy`` tells the user what to do about it."""

    code: CheckCode
    subject: str
    problem: str
    remedy: str = REPAIR_COMMAND
    repaired: bool = False
    #: The name of the subject; None if it has no row.
    name: str | None = None
    #: How long a worker may still be working on it, in seconds, unless it extends its lease; until then it is not
    #: repaired.
    leased_seconds: float = 0.0

    @property
    def repairable(self) -> bool:
        """Whether ``--repair`` can repair it."""
        return self.remedy == REPAIR_COMMAND

    @property
    def is_blind(self) -> bool:
        """Whether it says that something could not be compared."""
        return self.code in (CheckCode.UNREADABLE, CheckCode.NO_BACKEND)

    def __str__(self) -> str:
        subject = self.subject if self.name is None else f"{self.subject} ({self.name})"
        line = f"{self.code}  {subject}  {self.problem}  [{'repaired' if self.repaired else self.remedy}]"
        return printable(line)  # names of files are in it
