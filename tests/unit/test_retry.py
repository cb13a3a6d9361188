"""The retry policy: delays, and the last attempt."""

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.errors import CisternError, DatabaseUnavailable
from domain.jobs.attempt import Failed, RetryIn, RetryPolicy, describe
from domain.storage.errors import StorageBusy, TransientStorageError

CEILING = 300.0

attempts = st.integers(min_value=1, max_value=10_000)
bases = st.floats(min_value=0.001, max_value=86_400)


def disable_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "uniform", lambda low, high: (low + high) / 2)


@given(base=bases, attempt=attempts)
def test_jitter_changes_the_delay_by_at_most_half(base: float, attempt: int) -> None:
    without_jitter = min(base * 2.0 ** min(attempt - 1, 30), CEILING)

    assert without_jitter / 2 <= RetryPolicy(base).delay(attempt) <= without_jitter * 1.5


def test_jobs_that_failed_together_have_different_delays() -> None:
    assert len({RetryPolicy(1.0).delay(1) for _ in range(20)}) > 1


def test_each_delay_is_twice_the_previous_one(monkeypatch: pytest.MonkeyPatch) -> None:
    disable_jitter(monkeypatch)
    delays = [RetryPolicy(1.0).delay(attempt) for attempt in range(1, 9)]

    assert delays == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0]


def test_no_delay_is_longer_than_five_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    disable_jitter(monkeypatch)
    delays = [RetryPolicy(1.0).delay(attempt) for attempt in (9, 10, 100, 10_000)]

    assert delays[0] == 256.0
    assert delays[1:] == [CEILING] * 3


def test_transient_failure_is_retried_after_a_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    disable_jitter(monkeypatch)
    decision = RetryPolicy(1.0).decide(TransientStorageError("Later."), attempt=2, max_attempts=3)

    assert decision == RetryIn(2.0, {"code": "storage-unavailable", "detail": "Later."}, free=False)


@pytest.mark.parametrize("attempt", [3, 4, 100])
def test_failure_of_the_last_attempt_is_final(attempt: int) -> None:
    decision = RetryPolicy(1.0).decide(TransientStorageError("Later."), attempt=attempt, max_attempts=3)

    assert decision == Failed({"code": "storage-unavailable", "detail": "Later."})


def test_job_with_one_attempt_is_never_retried() -> None:
    assert isinstance(RetryPolicy(1.0).decide(DatabaseUnavailable(), attempt=1, max_attempts=1), Failed)


def test_waiting_for_a_lock_is_free_and_its_delay_never_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    disable_jitter(monkeypatch)

    assert RetryPolicy(1.0).wait(StorageBusy()) == RetryIn(1.0, describe(StorageBusy()), free=True)


def test_error_is_described_by_its_code_and_message() -> None:
    assert describe(CisternError()) == {"code": "internal", "detail": "Something went wrong."}


def test_delays_grow_until_the_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    disable_jitter(monkeypatch)
    delays = [RetryPolicy(0.05).delay(attempt) for attempt in range(1, 40)]

    assert all(later > earlier or later == CEILING for earlier, later in pairwise(delays))


def test_error_contains_no_nul_which_postgresql_rejects() -> None:
    assert describe(CisternError("no such file: a\0b")) == {"code": "internal", "detail": "no such file: ab"}
