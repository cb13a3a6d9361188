"""Growth policies: the new size of a volume, or the reason why it is unchanged."""

import json
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.bulk.expand import BulkExpandRequest, GrowthPolicy, Policy, VolumePolicies
from domain.bulk.model import ItemCode
from domain.bulk.requests import Selection
from domain.bulk.service import slots_per_lane
from domain.errors import Invalid
from domain.volumes.filesystems.usage import VolumeUsage
from domain.volumes.model import BLOCK_BYTES, MAX_SIZE, rounded_down

MIB = 1 << 20
SIZES = st.integers(min_value=1, max_value=MAX_SIZE)


def test_growth_is_rounded_up_to_whole_steps() -> None:
    assert GrowthPolicy(by=1, step=MIB).new_size(10 * MIB, None) == 11 * MIB
    assert GrowthPolicy(percent=10, step=MIB).new_size(10 * MIB, None) == 11 * MIB
    assert GrowthPolicy(by=3, step=8192).new_size(4096, None) == 8192
    assert GrowthPolicy(by=3, step=5000).new_size(4096, None) == 8192, "the step is rounded up too"


def test_volumes_are_measured_only_for_a_threshold() -> None:
    assert not GrowthPolicy(by=1, up_to=MIB).measures
    assert GrowthPolicy(by=1, usage_above=0).measures
    assert GrowthPolicy(by=1, inodes_above=0).measures
    assert not GrowthPolicy(by=1, cooldown_seconds=1).measures
    assert VolumePolicies().measures


def test_size_limit_takes_precedence_over_step() -> None:
    assert GrowthPolicy(by=MIB, up_to=10 * MIB + 4096).new_size(10 * MIB, None) == 10 * MIB + 4096


def test_size_limit_is_rounded_down() -> None:
    policy = GrowthPolicy(by=MIB, up_to=10 * MIB + 8191)

    assert policy.new_size(10 * MIB, None) == 10 * MIB + 4096
    assert policy.new_size(10 * MIB + 4096, None) == ItemCode.AT_LIMIT
    assert policy.new_size(10 * MIB + 5000, None) == ItemCode.AT_LIMIT, "a volume of an odd size from before"


@pytest.mark.parametrize(
    ("policy", "size", "used", "code"),
    [
        (GrowthPolicy(by=MIB, up_to=10), 10, None, ItemCode.AT_LIMIT),
        (GrowthPolicy(by=MIB, up_to=10), 11, None, ItemCode.AT_LIMIT),
        (GrowthPolicy(by=1), MAX_SIZE, None, ItemCode.AT_LIMIT),
        (GrowthPolicy(to=10), 10, None, ItemCode.ALREADY_LARGE_ENOUGH),
        (GrowthPolicy(to=10), 11, None, ItemCode.ALREADY_LARGE_ENOUGH),
        (GrowthPolicy(by=1, usage_above=80), 100, 80, ItemCode.BELOW_THRESHOLD),
        (GrowthPolicy(by=1, usage_above=80), 100, None, ItemCode.USAGE_UNKNOWN),
    ],
)
def test_unchanged_volume_has_a_reason(policy: GrowthPolicy, size: int, used: int | None, code: ItemCode) -> None:
    assert policy.new_size(size, used) == code


FULL_OF_INODES = VolumeUsage(inodes=1000, inodes_used=901)


@pytest.mark.parametrize(
    ("policy", "used", "usage", "expected"),
    [
        (GrowthPolicy(by=MIB, usage_above=80, inodes_above=90), MIB, FULL_OF_INODES, 11 * MIB),
        (GrowthPolicy(by=MIB, usage_above=80, inodes_above=91), MIB, FULL_OF_INODES, ItemCode.BELOW_THRESHOLD),
        (GrowthPolicy(by=MIB, usage_above=80), MIB, FULL_OF_INODES, ItemCode.BELOW_THRESHOLD),
        (GrowthPolicy(by=MIB, usage_above=80, inodes_above=91), 9 * MIB, FULL_OF_INODES, 11 * MIB),
        (GrowthPolicy(by=MIB, inodes_above=90), None, FULL_OF_INODES, 11 * MIB),
        (GrowthPolicy(by=MIB, inodes_above=91), None, FULL_OF_INODES, ItemCode.BELOW_THRESHOLD),
        (GrowthPolicy(by=MIB, inodes_above=0), MIB, VolumeUsage(), ItemCode.USAGE_UNKNOWN),
        (GrowthPolicy(by=MIB, inodes_above=0), MIB, VolumeUsage(inodes=0, inodes_used=0), ItemCode.USAGE_UNKNOWN),
        (GrowthPolicy(by=MIB, usage_above=80, inodes_above=0), MIB, VolumeUsage(), ItemCode.BELOW_THRESHOLD),
    ],
)
def test_inodes_that_run_out_let_a_volume_grow__too(
    policy: GrowthPolicy, used: int | None, usage: VolumeUsage, expected: int | ItemCode
) -> None:
    assert policy.new_size(10 * MIB, used, None, usage) == expected


@pytest.mark.parametrize(
    ("grown_ago", "expected"), [(59.9, ItemCode.COOLING_DOWN), (60, 11 * MIB), (None, 11 * MIB)], ids=str
)
def test_growths_are_a_cooldown_apart(grown_ago: float | None, expected: int | ItemCode) -> None:
    usage = VolumeUsage(grown_ago=None if grown_ago is None else timedelta(seconds=grown_ago))
    autogrow = {"usage_above": 80, "by": MIB, "up_to": 20 * MIB, "cooldown_seconds": 60}

    assert GrowthPolicy(by=MIB, cooldown_seconds=60).new_size(10 * MIB, None, None, usage) == expected
    assert VolumePolicies().new_size(10 * MIB, 9 * MIB, autogrow, usage) == expected
    assert GrowthPolicy(by=MIB).new_size(10 * MIB, None, None, usage) == 11 * MIB


def test_other_reasons_are_told_before_the_cooldown() -> None:
    policy, usage = GrowthPolicy(by=MIB, usage_above=80, up_to=10 * MIB, cooldown_seconds=60), VolumeUsage()
    usage = usage._replace(grown_ago=timedelta())

    assert policy.new_size(10 * MIB, MIB, None, usage) == ItemCode.BELOW_THRESHOLD
    assert policy.new_size(10 * MIB, 9 * MIB, None, usage) == ItemCode.AT_LIMIT


def test_job_of_a_policy_has_only_the_members_that_are_set() -> None:
    """A worker of an earlier version refuses members that it does not know."""
    assert GrowthPolicy(by=1, usage_above=0).to_json() == {"by": 1, "step": MIB, "usage_above": 0}


def test_volume_above_threshold_grows() -> None:
    assert GrowthPolicy(by=1, step=1, usage_above=80).new_size(100 * 4096, 81 * 4096) == 101 * 4096


@given(SIZES, st.integers(1, MAX_SIZE), st.integers(1, 2**40), st.none() | SIZES)
def test_new_size_is_larger_and_within_the_limit(size: int, by: int, step: int, up_to: int | None) -> None:
    decision = GrowthPolicy(by=by, step=step, up_to=up_to).new_size(size, None)

    if not isinstance(decision, ItemCode):
        assert size < decision <= min(up_to or MAX_SIZE, MAX_SIZE)
        assert decision % BLOCK_BYTES == 0
        assert decision >= min(size + by, rounded_down(up_to or MAX_SIZE))


@pytest.mark.parametrize(
    ("members", "field"),
    [
        ({}, "to"),
        ({"by": 1, "percent": 1}, "to"),
        ({"by": -1}, "by"),
        ({"by": 1, "step": 0}, "step"),
        ({"by": 1, "usage_above": -1}, "usage_above"),
        ({"by": 1, "usage_above": 101}, "usage_above"),
        ({"by": 1, "inodes_above": 101}, "inodes_above"),
        ({"by": 1, "cooldown_seconds": 0}, "cooldown_seconds"),
    ],
)
def test_invalid_policy_is_refused_with_its_field(members: dict[str, int], field: str) -> None:
    with pytest.raises(Invalid) as refusal:
        GrowthPolicy(**members)

    assert refusal.value.details["field"] == field


@given(st.integers(1, 1000))
def test_slots_of_lanes_add_up_to_max_concurrent(max_concurrent: int) -> None:
    slots = slots_per_lane(max_concurrent)

    assert sum(slots) == max_concurrent
    assert max(slots) - min(slots) <= 1
    assert len(slots) <= 8


@pytest.mark.parametrize("policy", [GrowthPolicy(percent=12.5, up_to=MIB), VolumePolicies()])
def test_request_round_trips_through_job_params(policy: Policy) -> None:
    request = BulkExpandRequest(policy, selection=Selection(labels={"a": "b"}, backend="local"), max_concurrent=7)

    assert BulkExpandRequest.from_json(json.loads(json.dumps(request.to_json()))) == request


def test_job_params_of_an_earlier_version_are_read() -> None:
    policy = {"to": None, "by": None, "percent": 20.0, "step": MIB, "up_to": None, "usage_above": 80.0}
    params = {"policy": policy, "selection": {"ids": None, "labels": {}, "backend": None}, "max_concurrent": 3}

    assert BulkExpandRequest.from_json(params) == BulkExpandRequest(
        GrowthPolicy(percent=20, usage_above=80), max_concurrent=3
    )


AUTOGROW = {"usage_above": 80, "percent": 20.0, "up_to": 13 * MIB}


@pytest.mark.parametrize(
    ("autogrow", "size", "used", "decision"),
    [
        (AUTOGROW, 10 * MIB, 9 * MIB, 12 * MIB),
        (AUTOGROW, 12 * MIB, 10 * MIB, 13 * MIB),
        (AUTOGROW, 13 * MIB, 13 * MIB, ItemCode.AT_LIMIT),
        (AUTOGROW, 14 * MIB, 14 * MIB, ItemCode.AT_LIMIT),
        (AUTOGROW, 10 * MIB, 8 * MIB, ItemCode.BELOW_THRESHOLD),
        (AUTOGROW, 10 * MIB, None, ItemCode.USAGE_UNKNOWN),
        ({"usage_above": 0, "by": 1, "up_to": MIB * 20}, 10 * MIB, 1, 11 * MIB),
        (None, 10 * MIB, 10 * MIB, ItemCode.NO_POLICY),
        (None, 10 * MIB, None, ItemCode.NO_POLICY),
    ],
)
def test_volume_grows_by_its_own_policy(
    autogrow: dict[str, Any] | None, size: int, used: int | None, decision: int | ItemCode
) -> None:
    assert VolumePolicies().new_size(size, used, autogrow) == decision


@given(SIZES, SIZES, st.integers(1, MAX_SIZE), st.integers(1, MAX_SIZE), st.floats(0, 100))
def test_volume_never_grows_beyond_the_limit_of_its_own_policy(
    size: int, used: int, by: int, up_to: int, usage_above: float
) -> None:
    decision = VolumePolicies().new_size(size, used, {"usage_above": usage_above, "by": by, "up_to": up_to})

    if not isinstance(decision, ItemCode):
        assert size < decision <= up_to
        assert decision % BLOCK_BYTES == 0


@pytest.mark.parametrize(
    "autogrow",
    [
        {},
        [],
        "autogrow",
        {"usage_above": 80, "by": 1},
        {"by": 1, "up_to": MIB},
        {"usage_above": 80, "up_to": MIB},
        {"usage_above": 80, "by": 1, "percent": 1, "up_to": MIB},
        {"usage_above": 80, "to": MIB, "up_to": MIB},
        {"usage_above": 80, "by": 1.5, "up_to": MIB},
        {"usage_above": 80, "by": "1GiB", "up_to": MIB},
        {"usage_above": 80, "by": True, "up_to": MIB},
        {"usage_above": 80, "by": -1, "up_to": MIB},
        {"usage_above": 80, "by": 1, "up_to": 0},
        {"usage_above": 80, "by": 1, "up_to": None},
        {"usage_above": "80", "by": 1, "up_to": MIB},
        {"usage_above": 101, "by": 1, "up_to": MIB},
        {"usage_above": 80, "percent": float("inf"), "up_to": MIB},
        {"usage_above": 80, "by": 1, "up_to": MIB, "until": "noon"},
    ],
    ids=repr,
)
def test_invalid_stored_policy_grows_nothing(autogrow: Any) -> None:
    assert VolumePolicies().new_size(10, 10, autogrow) is ItemCode.POLICY_UNUSABLE
