"""The witness's grant is the original with a second ear, never a copy that could fall behind."""

from uuid import UUID, uuid4

import pytest

from cistern_test_drivers.journal import JournalGrant, OperationJournal
from domain.storage.context import Fence, Grant, Stopped, StopReason

VOLUME = UUID("01890000-0000-7000-8000-000000000001")


def attempt() -> Grant:
    return Grant(uuid4(), Fence(1, 1), deadline=1.0, clock=lambda: 0.0)


def watched_by(original: Grant) -> JournalGrant:
    return JournalGrant(original, OperationJournal(None, "create", VOLUME, original, None))


def test_stopping_the_original_stops_the_watched_one() -> None:
    original = attempt()
    watched = watched_by(original)
    original.stop(StopReason.CANCELLED)

    with pytest.raises(Stopped):
        watched.check()
    assert watched.lease.stop_reason is StopReason.CANCELLED


def test_stopping_the_watched_one_stops_the_original() -> None:
    original = attempt()
    watched_by(original).stop(StopReason.SHUTDOWN)

    with pytest.raises(Stopped):
        original.check()


def test_both_share_one_lease() -> None:
    now = [0.0]
    original = Grant(uuid4(), Fence(1, 1), deadline=5.0, clock=lambda: now[0])
    watched = watched_by(original)
    now[0] = 6.0
    with pytest.raises(Stopped):
        watched.check()
    original.extend(10.0)
    watched.check()
    watched.extend(20.0)

    assert original.lease.deadline == 20.0


def test_progress_is_seen_on_the_original() -> None:
    now = [0.0]
    original = Grant(uuid4(), Fence(1, 1), deadline=5.0, clock=lambda: now[0])
    now[0] = 3.0
    watched_by(original).check()

    assert original.lease.progressed_at == 3.0


def test_what_is_reported_is_seen_on_both() -> None:
    now = [0.0]
    original = Grant(uuid4(), Fence(1, 1), deadline=5.0, clock=lambda: now[0])
    watched = watched_by(original)
    now[0] = 3.0

    watched.report(7, 9)

    assert (original.lease.copied, original.lease.progressed_at) == ((7, 9), 3.0)
    assert (watched.lease.copied, watched.lease.progressed_at) == ((7, 9), 3.0)
