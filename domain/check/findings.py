"""What can be wrong, and how it is told."""

import enum
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Final, Self
from uuid import UUID

REPAIR_COMMAND: Final = "run `cistern check --repair`"


class CheckCode(enum.StrEnum):
    """What is wrong; stable, for scripts."""

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
    """One thing that does not agree. ``remedy`` is what to do about it; ``mendable`` if `repair` can do it."""

    code: CheckCode
    subject: str
    problem: str
    remedy: str = REPAIR_COMMAND
    repaired: bool = False

    @property
    def repairable(self) -> bool:
        """Whether a repair takes care of it."""
        return self.remedy == REPAIR_COMMAND

    def as_repaired(self) -> Self:
        """Tell that it has been taken care of."""
        return replace(self, repaired=True)

    def left(self, remedy: str) -> Self:
        """Tell why it was not taken care of."""
        return replace(self, remedy=remedy)

    def __str__(self) -> str:
        return f"{self.code}  {self.subject}  {self.problem}  [{'repaired' if self.repaired else self.remedy}]"


@dataclass
class Report:
    """All that an inspection found, and how much it looked at, by name."""

    findings: list[Finding] = field(default_factory=list)
    looked_at: Counter[str] = field(default_factory=Counter)

    @property
    def left(self) -> list[Finding]:
        """What has not been repaired; nothing, if all agree."""
        return [finding for finding in self.findings if not finding.repaired]


def volume(volume_id: UUID) -> str:
    """Name a volume."""
    return f"volume {volume_id}"


def snapshot(snapshot_id: UUID) -> str:
    """Name a snapshot."""
    return f"snapshot {snapshot_id}"


def job(job_id: UUID) -> str:
    """Name a job."""
    return f"job {job_id}"
