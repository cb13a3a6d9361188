"""The transition table of jobs, checked pair by pair."""

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
def test_only_the_designed_transitions_are_allowed(before: JobStatus, after: JobStatus) -> None:
    assert (after in MOVES[before]) == ((before, after) in ALLOWED)


def test_every_status_has_a_row_in_the_table() -> None:
    assert set(MOVES) == set(JobStatus)


def test_a_job_is_either_live_or_ended() -> None:
    assert {QUEUED, RUNNING} == LIVE
    assert {SUCCEEDED, PARTIAL, FAILED, CANCELLED} == ENDED


def test_every_final_status_except_succeeded_can_be_retried() -> None:
    assert ENDED - {SUCCEEDED} == RETRYABLE


def test_every_status_is_reachable_from_queued() -> None:
    reached = {QUEUED}
    while more := {after for before in reached for after in MOVES[before]} - reached:
        reached |= more

    assert reached == set(JobStatus)


def test_diagram_names_every_status() -> None:
    assert set(JobStatus) <= set(re.findall(r"[a-z]+", domain.jobs.__doc__ or ""))
