"""A worker with its share of a bulk job's lanes yields the next one, unless no other worker claims it."""

from uuid import UUID

from uuid_utils.compat import uuid7

from domain.bulk.model import Lane
from domain.jobs.attempt import ClaimedJob
from tests.unit.worker_fakes import a_job
from worker import lanes as lanes_module
from worker.lanes import FairShare

PARENT_ID = uuid7()


def a_lane(parent_id: UUID = PARENT_ID, **params: object) -> Lane:
    return Lane.from_job(
        ClaimedJob.from_row(a_job("bulk.lane", parent_id=parent_id, params={"lanes": 8, "fence_version": 0} | params))
    )


def test_one_of_four_workers_runs_two_of_eight_lanes() -> None:
    fair_share = FairShare(lambda: 4)
    with fair_share.admit(a_lane()) as first, fair_share.admit(a_lane()) as second, fair_share.admit(a_lane()) as third:
        assert (first, second, third) == (True, True, False)


def test_uneven_share_is_rounded_up() -> None:
    fair_share = FairShare(lambda: 3)
    lanes = [fair_share.admit(a_lane()) for _ in range(4)]

    assert [lane.__enter__() for lane in lanes] == [True, True, True, False]


def test_yielded_lane_that_no_other_worker_claimed_is_kept() -> None:
    fair_share, lane = FairShare(lambda: 8), a_lane()
    with fair_share.admit(a_lane()):
        with fair_share.admit(lane) as kept:
            assert not kept
        lane = lane._replace(epoch=lane.epoch + 1)
        with fair_share.admit(lane) as kept:
            assert kept


def test_yielded_lane_that_another_worker_claimed_is_yielded_again() -> None:
    fair_share, lane = FairShare(lambda: 8), a_lane()
    with fair_share.admit(a_lane()):
        for _ in range(3):
            with fair_share.admit(lane) as kept:
                assert not kept
            lane = lane._replace(epoch=lane.epoch + 2)


def test_ended_lanes_and_lanes_of_other_jobs_do_not_count() -> None:
    fair_share = FairShare(lambda: 8)
    with fair_share.admit(a_lane()), fair_share.admit(a_lane(uuid7())) as of_other_job:
        assert of_other_job
    with fair_share.admit(a_lane()) as next_lane:
        assert next_lane
    assert not fair_share._running


def test_single_worker_and_lanes_without_a_lane_count_are_not_limited() -> None:
    single, one_of_many = FairShare(lambda: 1), FairShare(lambda: 100)
    uncounted = [a_lane()._replace(params={"fence_version": 0}) for _ in range(8)]

    assert all(single.admit(a_lane()).__enter__() for _ in range(8))
    assert all(one_of_many.admit(lane).__enter__() for lane in uncounted)


def test_number_of_remembered_lanes_is_limited() -> None:
    fair_share = FairShare(lambda: 8)
    with fair_share.admit(a_lane()):
        for _ in range(10 * lanes_module._MAX_REMEMBERED):
            with fair_share.admit(a_lane()) as kept:
                assert not kept

    assert len(fair_share._yielded_epochs) == lanes_module._MAX_REMEMBERED
