"""Reads the journal of the ``faulty`` driver, and checks the order of its entries."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self
from uuid import UUID

from domain.jobs.model import Job

SNAPSHOT_OPERATIONS = {"take_snapshot", "delete_snapshot", "seal_snapshot"}


@dataclass(frozen=True)
class Entry:
    """One line: what a driver did to a volume, for which job and with which fence."""

    event: str
    operation: str
    volume_id: UUID
    job_id: UUID
    fence: tuple[int, int]
    pid: int
    at: datetime
    snapshot_id: UUID | None = None

    @property
    def subject(self) -> UUID:
        """The id of the published volume or snapshot, which the fence belongs to."""
        return self.snapshot_id if self.snapshot_id and self.operation in SNAPSHOT_OPERATIONS else self.volume_id

    @classmethod
    def parse(cls, line: str) -> Self:
        raw: dict[str, Any] = json.loads(line)
        return cls(
            raw["event"],
            raw["operation"],
            UUID(raw["volume_id"]),
            UUID(raw["job_id"]),
            (raw["fence"][0], raw["fence"][1]),
            raw["pid"],
            datetime.fromtimestamp(raw["at"] / 1e9, tz=UTC),
            UUID(raw["snapshot_id"]) if "snapshot_id" in raw else None,
        )


def read(path: Path) -> list[Entry]:
    """Read the lines that are complete; a worker may just be writing the next one."""
    text = path.read_text() if path.exists() else ""
    return [Entry.parse(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def published(path: Path, subject: UUID) -> list[Entry]:
    return [entry for entry in read(path) if entry.event == "published" and entry.subject == subject]


def assert_orderly(path: Path, job: Job) -> None:
    """Assert that fences never decreased, that the recorded attempt published, and that nothing was published later."""
    subject = job.snapshot_id if job.kind in ("snapshot.take", "snapshot.delete") else job.volume_id
    assert subject is not None
    assert job.finished_at is not None
    entries = published(path, subject)
    fences = [entry.fence for entry in entries]
    assert fences == sorted(fences)
    own = [entry for entry in entries if entry.job_id == job.id]
    assert own, "the job succeeded without publishing"
    assert own[-1].fence[1] <= job.epoch
    assert all(entry.at <= job.finished_at for entry in own)
