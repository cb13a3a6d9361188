"""What a bulk snapshot is for, what its snapshots are called, and what a schedule keeps."""

from datetime import UTC, datetime
from uuid import uuid4

import pytest

from domain.bulk.selection import Selection
from domain.bulk.snapshot.request import MAX_PREFIX, BulkSnapshotRequest, stamped
from domain.errors import Invalid
from domain.snapshots.retention import RetentionRule
from domain.volumes.model import MAX_NAME


def test_a_name_is_stamped_to_the_millisecond() -> None:
    assert stamped("nightly", datetime(2026, 1, 31, 2, 3, 4, 56_789, tzinfo=UTC)) == "nightly-20260131T020304056Z"


def test_names_of_later_moments_come_later() -> None:
    moments = [datetime(2026, 1, 31, 2, 0, 0, 9_000, tzinfo=UTC), datetime(2026, 1, 31, 2, 0, 0, 10_000, tzinfo=UTC)]

    assert sorted(stamped("n", moment) for moment in moments) == [stamped("n", moment) for moment in moments]


def test_the_longest_name_still_fits_when_it_is_stamped() -> None:
    assert len(stamped(BulkSnapshotRequest("n" * MAX_PREFIX).name, datetime.now(UTC))) == MAX_NAME


@pytest.mark.parametrize("name", ["", "n" * (MAX_PREFIX + 1)])
def test_a_name_that_does_not_fit_is_refused(name: str) -> None:
    with pytest.raises(Invalid) as refused:
        BulkSnapshotRequest(name)

    assert refused.value.details["field"] == "name"


@pytest.mark.parametrize("value", [0, -1, 36_501])
def test_a_rule_that_makes_no_sense_is_refused(value: int) -> None:
    for rule, keep in (("keep_last", {"last": value}), ("keep_days", {"days": value})):
        with pytest.raises(Invalid) as refused:
            RetentionRule(**keep)
        assert refused.value.details["field"] == rule


def test_a_wish_survives_its_way_through_a_job() -> None:
    wanted = BulkSnapshotRequest(
        "n", Selection((uuid4(),), {"team": "search"}, "local"), 7, RetentionRule(last=3, days=7)
    )

    assert BulkSnapshotRequest.from_json(wanted.to_json()) == wanted
    assert BulkSnapshotRequest.from_json(BulkSnapshotRequest("n").to_json()) == BulkSnapshotRequest("n")
