"""Everything there is at one moment: the rows, and what is on the storage."""

import json
from dataclasses import dataclass
from typing import Any, Final, Self

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from domain.jobs.states import ENDED
from tests.simulation.doubles import JournalingMemoryDriver

Row = dict[str, Any]
Rows = dict[str, Row]

_LOOK: Final = text(
    "SELECT json_build_object("
    "'jobs', (SELECT json_agg(t ORDER BY id) FROM jobs t),"
    "'volumes', (SELECT json_agg(t ORDER BY id) FROM volumes t),"
    "'snapshots', (SELECT json_agg(t ORDER BY id) FROM snapshots t),"
    "'items', (SELECT json_agg(t ORDER BY job_id, volume_id) FROM job_items t))::text"
)
#: What a job of this kind makes of the volume that it has in its hands.
STATE_OF: Final = {
    "volume.create": "creating",
    "snapshot.clone": "creating",
    "volume.expand": "expanding",
    "volume.delete": "deleting",
    "snapshot.take": "snapshotting",
    "snapshot.restore": "restoring",
}
#: The same for a snapshot.
SNAPSHOT_STATE_OF: Final = {
    "snapshot.take": "taking",
    "snapshot.restore": "restoring",
    "snapshot.clone": "cloning",
    "snapshot.delete": "deleting",
}


@dataclass(frozen=True)
class WorldState:
    """Rows by id, ledger items by job and volume; sizes on the storage by id; how much was ever published."""

    jobs: Rows
    volumes: Rows
    snapshots: Rows
    items: dict[tuple[str, str], Row]
    disk: dict[str, int]
    kept: dict[str, int]
    publications: int

    @classmethod
    async def of(cls, eyes: AsyncConnection, driver: JournalingMemoryDriver) -> Self:
        """``eyes``: a connection that commits by itself, as this is done after each step."""
        found = json.loads(str(await eyes.scalar(_LOOK)))
        jobs, volumes, snapshots = (_by_id(found[name]) for name in ("jobs", "volumes", "snapshots"))
        items = {(row["job_id"], row["volume_id"]): row for row in found["items"] or ()}
        disk, kept = driver.sizes()
        return cls(jobs, volumes, snapshots, items, disk, kept, len(driver.publications))

    def ended(self, job_id: str) -> bool:
        return self.jobs[job_id]["status"] in ENDED

    def live(self) -> list[Row]:
        return [job for job in self.jobs.values() if job["status"] not in ENDED]

    def items_of(self, job_id: str) -> list[Row]:
        return [item for (owner, _), item in self.items.items() if owner == job_id]

    def target(self, volume_id: str) -> int | None:
        """The size that whoever has the volume in hand wants it to have; None if no size is wanted."""
        job_id = self.volumes[volume_id]["job_id"] if volume_id in self.volumes else None
        if job_id is None:
            return None
        if (job_id, volume_id) in self.items:
            wanted: int | None = self.items[job_id, volume_id]["to_size"]
            return wanted
        params = self.jobs[job_id]["params"]
        return {
            "volume.create": params.get("size"),
            "snapshot.clone": params.get("size"),
            "volume.expand": params.get("to_size"),
        }.get(self.jobs[job_id]["kind"])


def _by_id(rows: list[Row] | None) -> Rows:
    return {row["id"]: row for row in rows or ()}
