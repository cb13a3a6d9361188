"""The state of the world at one moment: all rows, and what is on the storage."""

import json
from dataclasses import dataclass
from typing import Any, Final, Self
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from domain.jobs.states import ENDED
from domain.operations import OPERATIONS
from domain.storage.intermediate import intermediate_of
from tests.simulation.doubles import JournalingMemoryDriver

Row = dict[str, Any]
Rows = dict[str, Row]

_READ_ALL: Final = text(
    "SELECT json_build_object("
    "'jobs', (SELECT json_agg(t ORDER BY id) FROM jobs t),"
    "'volumes', (SELECT json_agg(t ORDER BY id) FROM volumes t),"
    "'snapshots', (SELECT json_agg(t ORDER BY id) FROM snapshots t),"
    "'items', (SELECT json_agg(t ORDER BY job_id, volume_id) FROM job_items t))::text"
)
#: The state of a volume while a job of this kind holds it.
STATE_OF: Final = {kind: one.volume.busy for kind, one in OPERATIONS.items() if one.volume}
#: The state of the volume that a job of this kind clones.
SOURCE_STATE_OF: Final = {kind: one.source.busy for kind, one in OPERATIONS.items() if one.source}
#: The state of a snapshot while a job of this kind holds it.
SNAPSHOT_STATE_OF: Final = {kind: one.snapshot.busy for kind, one in OPERATIONS.items() if one.snapshot}


@dataclass(frozen=True)
class WorldState:
    """Rows by id, items by job and volume, sizes on the storage by id, and the number of publications so far."""

    jobs: Rows
    volumes: Rows
    snapshots: Rows
    items: dict[tuple[str, str], Row]
    stored_volumes: dict[str, int]
    stored_snapshots: dict[str, int]
    publications: int

    @classmethod
    async def read(cls, observer: AsyncConnection, driver: JournalingMemoryDriver) -> Self:
        """Read everything; ``observer`` is an autocommit connection, because this runs after every step."""
        tables = json.loads(str(await observer.scalar(_READ_ALL)))
        jobs, volumes, snapshots = (_by_id(tables[name]) for name in ("jobs", "volumes", "snapshots"))
        items = {(row["job_id"], row["volume_id"]): row for row in tables["items"] or ()}
        stored_volumes, stored_snapshots = driver.sizes()
        return cls(jobs, volumes, snapshots, items, stored_volumes, stored_snapshots, len(driver.publications))

    def ended(self, job_id: str) -> bool:
        return self.jobs[job_id]["status"] in ENDED

    def live(self) -> list[Row]:
        return [job for job in self.jobs.values() if job["status"] not in ENDED]

    def items_of(self, job_id: str) -> list[Row]:
        return [item for (owner, _), item in self.items.items() if owner == job_id]

    def held_volumes(self, job: Row) -> list[str]:
        """Return the volumes that a job of an operation holds: its own, and the one that it clones."""
        own = [job["volume_id"]] if job["kind"] in STATE_OF else []
        return own + ([job["params"]["of_volume"]] if job["kind"] in SOURCE_STATE_OF else [])

    def intermediates(self) -> set[str]:
        """Return the ids of the intermediate snapshots of live clones."""
        cloning = (job["volume_id"] for job in self.live() if job["kind"] in SOURCE_STATE_OF)
        return {str(intermediate_of(UUID(clone))) for clone in cloning}

    def target_size(self, volume_id: str) -> int | None:
        """Return the size that the holder of the volume is to give it, None if it does not set a size."""
        job_id = self.volumes[volume_id]["job_id"] if volume_id in self.volumes else None
        if job_id is None:
            return None
        if (job_id, volume_id) in self.items:
            to_size: int | None = self.items[job_id, volume_id]["to_size"]
            return to_size
        params = self.jobs[job_id]["params"]
        return {
            "volume.create": params.get("size"),
            "snapshot.clone": params.get("size"),
            "volume.clone": params.get("size"),
            "volume.expand": params.get("to_size"),
        }.get(self.jobs[job_id]["kind"])


def _by_id(rows: list[Row] | None) -> Rows:
    return {row["id"]: row for row in rows or ()}
