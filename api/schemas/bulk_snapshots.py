"""How clients ask for snapshots of many volumes: what these are called, and which of them a schedule keeps."""

from typing import Annotated, Any

from pydantic import ConfigDict, Field, StringConstraints

from api.schemas.fields import NAME_PATTERN
from api.schemas.omittable import Given
from api.schemas.selection import SelectionIn
from domain.bulk.snapshot.request import MAX_PREFIX, BulkSnapshotRequest
from domain.snapshots.retention import MAX_KEPT

_KEPT: Any = {"ge": 1, "le": MAX_KEPT, "strict": True}


class BulkSnapshotIn(SelectionIn):
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

    def snapshots(self) -> BulkSnapshotRequest:
        """Say it to the domain."""
        return BulkSnapshotRequest(self.name, self.selection(), self.max_concurrent)


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
