"""What the check can find, and how findings are shown."""

import enum
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Final, Self
from uuid import UUID

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

    def as_repaired(self) -> Self:
        """Return the finding marked as repaired."""
        return replace(self, repaired=True)

    def with_remedy(self, remedy: str) -> Self:
        """Return the finding with another remedy, because it could not be repaired."""
        return replace(self, remedy=remedy)

    def __str__(self) -> str:
        return f"{self.code}  {self.subject}  {self.problem}  [{'repaired' if self.repaired else self.remedy}]"


@dataclass
class Report:
    """All findings of a check, and the number of things checked, by name."""

    findings: list[Finding] = field(default_factory=list)
    checked: Counter[str] = field(default_factory=Counter)


def volume(volume_id: UUID) -> str:
    """Return the subject of a finding about a volume."""
    return f"volume {volume_id}"


def snapshot(snapshot_id: UUID) -> str:
    """Return the subject of a finding about a snapshot."""
    return f"snapshot {snapshot_id}"


def job(job_id: UUID) -> str:
    """Return the subject of a finding about a job."""
    return f"job {job_id}"
