"""What the check can find, and how a finding is shown."""

import enum
from dataclasses import dataclass
from typing import Final

REPAIR_COMMAND: Final = "run `cistern check --repair`"


class CheckCode(enum.StrEnum):
    """The kind of a finding; stable, for scripts."""

    DATA_MISSING = "data-missing"
    SIZE_DIFFERS = "size-differs"
    FENCE_BEHIND = "fence-behind"
    NO_ROW = "no-row"
    LEFTOVER = "leftover"
    NO_JOB = "no-job"
    NOT_HELD = "not-held"
    NO_WORKER = "no-worker"
    ITEMS_UNFINISHED = "items-unfinished"
    MISCOUNTED = "miscounted"
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

    @property
    def repairable(self) -> bool:
        """Whether ``--repair`` can repair it."""
        return self.remedy == REPAIR_COMMAND

    def __str__(self) -> str:
        return f"{self.code}  {self.subject}  {self.problem}  [{'repaired' if self.repaired else self.remedy}]"
