"""A worker that has its share of a bulk job's lanes passes the next one on, but takes it when nobody else has."""

from uuid import UUID

from uuid_utils.compat import uuid7

from domain.bulk.ledger import Lane
from domain.jobs.claimed import ClaimedJob
from tests.unit.worker_fakes import a_job
from worker import fair_share as fair_share_module
from worker.fair_share import FairShare

WHOLE = uuid7()


def a_lane(whole: UUID = WHOLE, **params: object) -> Lane:
    return Lane.from_job(
        ClaimedJob.from_row(a_job("bulk.lane", parent_id=whole, params={"lanes": 8, "fence": 0} | params))
    )


def test_of_eight_lanes_one_of_four_workers_keeps_two() -> None:
    fair_share = FairShare(lambda: 4)
    with fair_share.admit(a_lane()) as first, fair_share.admit(a_lane()) as second, fair_share.admit(a_lane()) as third:
        assert (first, second, third) == (True, True, False)


def test_what_does_not_divide_evenly_is_more_for_everybody_rather_than_nobodys() -> None:
    fair_share = FairShare(lambda: 3)
    lanes = [fair_share.admit(a_lane()) for _ in range(4)]

    assert [lane.__enter__() for lane in lanes] == [True, True, True, False]


def test_a_lane_that_comes_straight_back_is_kept() -> None:
    fair_share, lane = FairShare(lambda: 8), a_lane()
    with fair_share.admit(a_lane()):
        with fair_share.admit(lane) as kept:
            assert not kept
        lane = lane._replace(epoch=lane.epoch + 1)
        with fair_share.admit(lane) as kept:
            assert kept


def test_a_lane_that_somebody_else_has_had_meanwhile_is_passed_on_again() -> None:
    fair_share, lane = FairShare(lambda: 8), a_lane()
    with fair_share.admit(a_lane()):
        for _ in range(3):
            with fair_share.admit(lane) as kept:
                assert not kept
            lane = lane._replace(epoch=lane.epoch + 2)


def test_a_lane_that_has_ended_makes_room_and_each_bulk_job_counts_for_itself() -> None:
    fair_share = FairShare(lambda: 8)
    with fair_share.admit(a_lane()), fair_share.admit(a_lane(uuid7())) as of_another:
        assert of_another
    with fair_share.admit(a_lane()) as next_one:
        assert next_one
    assert not fair_share._here


def test_who_is_alone_or_meets_a_lane_of_an_older_version_keeps_all() -> None:
    alone, among_many = FairShare(lambda: 1), FairShare(lambda: 100)
    old = [a_lane()._replace(params={"fence": 0}) for _ in range(8)]

    assert all(alone.admit(a_lane()).__enter__() for _ in range(8))
    assert all(among_many.admit(lane).__enter__() for lane in old)


def test_lanes_that_never_come_back_are_not_remembered_for_ever() -> None:
    fair_share = FairShare(lambda: 8)
    with fair_share.admit(a_lane()):
        for _ in range(10 * fair_share_module._MAX_REMEMBERED):
            with fair_share.admit(a_lane()) as kept:
                assert not kept

    assert len(fair_share._yielded) == fair_share_module._MAX_REMEMBERED
