"""The table of a job's moves, walked pair by pair."""

import re

import pytest

import domain.jobs
from domain.jobs.states import ENDED, LIVE, MOVES, RETRYABLE, JobStatus

QUEUED, RUNNING, SUCCEEDED, PARTIAL, FAILED, CANCELLED = JobStatus

ALLOWED = {
    (QUEUED, RUNNING),
    (QUEUED, CANCELLED),
    (RUNNING, QUEUED),
    (RUNNING, SUCCEEDED),
    (RUNNING, PARTIAL),
    (RUNNING, FAILED),
    (RUNNING, CANCELLED),
}


@pytest.mark.parametrize("after", JobStatus)
@pytest.mark.parametrize("before", JobStatus)
def test_a_job_moves_only_as_the_design_says(before: JobStatus, after: JobStatus) -> None:
    assert (after in MOVES[before]) == ((before, after) in ALLOWED)


def test_every_status_has_its_row_in_the_table() -> None:
    assert set(MOVES) == set(JobStatus)


def test_a_job_is_either_live_or_ended() -> None:
    assert {QUEUED, RUNNING} == LIVE
    assert {SUCCEEDED, PARTIAL, FAILED, CANCELLED} == ENDED


def test_what_ended_short_of_success_can_be_retried() -> None:
    assert ENDED - {SUCCEEDED} == RETRYABLE


def test_every_status_can_be_reached_from_queued() -> None:
    reached = {QUEUED}
    while more := {after for before in reached for after in MOVES[before]} - reached:
        reached |= more

    assert reached == set(JobStatus)


def test_the_drawing_names_every_status() -> None:
    assert set(JobStatus) <= set(re.findall(r"[a-z]+", domain.jobs.__doc__ or ""))
