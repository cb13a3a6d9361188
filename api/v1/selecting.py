"""How clients say which volumes, of many, and how many at once."""

from typing import Annotated, Any

from pydantic import ConfigDict, Field, StringConstraints

from api.absent import Given
from api.v1.body import Body
from api.v1.fields import MAX_CONCURRENT, NAME_PATTERN, BackendName, Labels, VolumeIds
from domain.bulk.selection import DEFAULT_CONCURRENT, Selection
from domain.snapshots.policy import MAX_KEPT, MAX_PREFIX, BulkSnapshot

_KEPT: Any = {"ge": 1, "le": MAX_KEPT, "strict": True}


class Selecting(Body):
    """Which volumes, and how many at once."""

    ids: Annotated[Given[VolumeIds], Field(description="Only these. One that does not exist is in the ledger.")] = None
    labels: Annotated[Labels, Field(description="Only volumes with all of these.")] = Field(default_factory=dict)
    backend: Annotated[Given[BackendName], Field(description="Only volumes on this backend.")] = None
    max_concurrent: Annotated[
        int, Field(ge=1, le=MAX_CONCURRENT, strict=True, description="How many at once, over all workers.")
    ] = DEFAULT_CONCURRENT

    def selection(self) -> Selection:
        """Say which volumes to the domain."""
        return Selection(None if self.ids is None else tuple(self.ids), self.labels, self.backend)


class BulkSnapshotIn(Selecting):
    """Of which volumes, how many at once, and what the snapshots are called."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"name": "before-the-upgrade", "labels": {"team": "search"}}]}
    )

    name: Annotated[
        str,
        StringConstraints(pattern=NAME_PATTERN, max_length=MAX_PREFIX),
        Field(
            description="What their names begin with; the time is added: `before-the-upgrade-20260131T235959123Z`.",
            examples=["before-the-upgrade"],
        ),
    ]

    def snapshots(self) -> BulkSnapshot:
        """Say it to the domain."""
        return BulkSnapshot(self.name, self.selection(), self.max_concurrent)


class ScheduledSnapshotIn(BulkSnapshotIn):
    """The same for a schedule, which may delete what it has made before."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "nightly", "keep_last": 7}]})

    keep_last: Annotated[
        Given[Annotated[int, Field(**_KEPT)]],
        Field(description="Of each volume, keep so many of the schedule's own snapshots. Without either, all."),
    ] = None
    keep_days: Annotated[
        Given[Annotated[int, Field(**_KEPT)]],
        Field(description="Keep those that are not older; with `keep_last`, whatever either of them keeps."),
    ] = None
