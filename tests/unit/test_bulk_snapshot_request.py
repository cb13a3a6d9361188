"""Requests for bulk snapshots: names, time stamps and retention rules."""

from datetime import UTC, datetime
from uuid import uuid4

import pytest

from domain.bulk.requests import Selection
from domain.bulk.snapshot import MAX_PREFIX, BulkSnapshotRequest, stamped
from domain.errors import Invalid
from domain.snapshots.retention import RetentionRule
from domain.volumes.model import MAX_NAME


def test_name_gets_a_time_stamp_in_milliseconds() -> None:
    assert stamped("nightly", datetime(2026, 1, 31, 2, 3, 4, 56_789, tzinfo=UTC), None) == "nightly-20260131T020304056Z"


def test_names_sort_by_time() -> None:
    times = [datetime(2026, 1, 31, 2, 0, 0, 9_000, tzinfo=UTC), datetime(2026, 1, 31, 2, 0, 0, 10_000, tzinfo=UTC)]

    assert sorted(stamped("n", time, None) for time in times) == [stamped("n", time, None) for time in times]


def test_longest_name_fits_with_its_time_stamp() -> None:
    assert len(stamped(BulkSnapshotRequest("n" * MAX_PREFIX).name, datetime.now(UTC), str(uuid4()))) == MAX_NAME


@pytest.mark.parametrize("name", ["", "n" * (MAX_PREFIX + 1)])
def test_empty_or_too_long_name_is_refused(name: str) -> None:
    with pytest.raises(Invalid) as refused:
        BulkSnapshotRequest(name)

    assert refused.value.details["field"] == "name"


@pytest.mark.parametrize("value", [0, -1, 36_501])
def test_retention_rule_out_of_bounds_is_refused(value: int) -> None:
    for field, limits in (("keep_last", {"last": value}), ("keep_days", {"days": value})):
        with pytest.raises(Invalid) as refused:
            RetentionRule(**limits)
        assert refused.value.details["field"] == field


def test_request_round_trips_through_job_params() -> None:
    request = BulkSnapshotRequest(
        "n",
        selection=Selection((uuid4(),), {"team": "search"}, "local"),
        max_concurrent=7,
        keep=RetentionRule(last=3, days=7),
    )

    assert BulkSnapshotRequest.from_json(request.to_json()) == request
    assert BulkSnapshotRequest.from_json(BulkSnapshotRequest("n").to_json()) == BulkSnapshotRequest("n")


def test_runs_of_two_schedules_at_the_same_time_have_different_names() -> None:
    time, schedules = datetime.now(UTC), (uuid4(), uuid4())
    request = BulkSnapshotRequest("nightly")
    names = [request.job_params(time=time, schedule_id=one)["snapshot_name"] for one in (*schedules, None)]

    assert len(set(names)) == 3
    assert all(name.startswith("nightly-") for name in names)
