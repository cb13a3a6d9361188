"""A worker that has its share of a bulk job's lanes passes the next one on, but takes it when nobody else has."""

from uuid import UUID

from uuid_utils.compat import uuid7

from domain.bulk.ledger import Lane
from domain.jobs.orders import WorkOrder
from tests.unit.worker_fakes import a_job
from worker import sharing as sharing_module
from worker.sharing import Sharing

WHOLE = uuid7()


def a_lane(whole: UUID = WHOLE, **params: object) -> Lane:
    return Lane.of(WorkOrder.of(a_job("bulk.lane", parent_id=whole, params={"lanes": 8, "fence": 0} | params)))


def test_of_eight_lanes_one_of_four_workers_keeps_two() -> None:
    sharing = Sharing(lambda: 4)
    with sharing.taking(a_lane()) as first, sharing.taking(a_lane()) as second, sharing.taking(a_lane()) as third:
        assert (first, second, third) == (True, True, False)


def test_what_does_not_divide_evenly_is_more_for_everybody_rather_than_nobodys() -> None:
    sharing = Sharing(lambda: 3)
    lanes = [sharing.taking(a_lane()) for _ in range(4)]

    assert [lane.__enter__() for lane in lanes] == [True, True, True, False]


def test_a_lane_that_comes_straight_back_is_kept() -> None:
    sharing, lane = Sharing(lambda: 8), a_lane()
    with sharing.taking(a_lane()):
        with sharing.taking(lane) as kept:
            assert not kept
        lane = lane._replace(ring=lane.ring + 1)
        with sharing.taking(lane) as kept:
            assert kept


def test_a_lane_that_somebody_else_has_had_meanwhile_is_passed_on_again() -> None:
    sharing, lane = Sharing(lambda: 8), a_lane()
    with sharing.taking(a_lane()):
        for _ in range(3):
            with sharing.taking(lane) as kept:
                assert not kept
            lane = lane._replace(ring=lane.ring + 2)


def test_a_lane_that_has_ended_makes_room_and_each_bulk_job_counts_for_itself() -> None:
    sharing = Sharing(lambda: 8)
    with sharing.taking(a_lane()), sharing.taking(a_lane(uuid7())) as of_another:
        assert of_another
    with sharing.taking(a_lane()) as next_one:
        assert next_one
    assert not sharing._here


def test_who_is_alone_or_meets_a_lane_of_an_older_version_keeps_all() -> None:
    alone, among_many = Sharing(lambda: 1), Sharing(lambda: 100)
    old = [a_lane()._replace(params={"fence": 0}) for _ in range(8)]

    assert all(alone.taking(a_lane()).__enter__() for _ in range(8))
    assert all(among_many.taking(lane).__enter__() for lane in old)


def test_lanes_that_never_come_back_are_not_remembered_for_ever() -> None:
    sharing = Sharing(lambda: 8)
    with sharing.taking(a_lane()):
        for _ in range(10 * sharing_module._REMEMBERED):
            with sharing.taking(a_lane()) as kept:
                assert not kept

    assert len(sharing._passed_on) == sharing_module._REMEMBERED
