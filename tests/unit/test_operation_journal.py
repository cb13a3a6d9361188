"""The journal's grant is a proxy that shares all state with the original, never a copy that could become stale."""

from pathlib import Path
from uuid import UUID, uuid4

import pytest

from cistern_test_drivers.journal import JournalGrant, OperationJournal
from domain.storage.context import Fence, Grant, Stopped, StopReason
from tests.acceptance.journal import read

VOLUME = UUID("01890000-0000-7000-8000-000000000001")


def attempt() -> Grant:
    return Grant(uuid4(), Fence(1, 1), deadline=1.0, clock=lambda: 0.0)


def proxy_for(original: Grant) -> JournalGrant:
    return JournalGrant(original, OperationJournal(None, "create", VOLUME, original, None))


def test_stopping_the_original_stops_the_proxy() -> None:
    original = attempt()
    proxy = proxy_for(original)
    original.stop(StopReason.CANCELLED)

    with pytest.raises(Stopped):
        proxy.check()
    assert proxy.state.stop_reason is StopReason.CANCELLED


def test_stopping_the_proxy_stops_the_original() -> None:
    original = attempt()
    proxy_for(original).stop(StopReason.SHUTDOWN)

    with pytest.raises(Stopped):
        original.check()


def test_proxy_and_original_share_one_lease() -> None:
    now = [0.0]
    original = Grant(uuid4(), Fence(1, 1), deadline=5.0, clock=lambda: now[0])
    proxy = proxy_for(original)
    now[0] = 6.0
    with pytest.raises(Stopped):
        proxy.check()
    original.extend(10.0)
    proxy.check()
    proxy.extend(20.0)

    assert original.state.deadline == 20.0


def test_check_on_the_proxy_records_progress_on_the_original() -> None:
    now = [0.0]
    original = Grant(uuid4(), Fence(1, 1), deadline=5.0, clock=lambda: now[0])
    now[0] = 3.0
    proxy_for(original).check()

    assert original.state.progressed_at == 3.0


def test_blocking_call_on_the_proxy_is_one_of_the_original() -> None:
    original = Grant(uuid4(), Fence(1, 1), deadline=5.0, clock=lambda: 0.0)
    with proxy_for(original).blocking_call("sync"):
        names = [call.name for call in original.state.calls]

    assert (names, original.state.calls) == (["sync"], set())


def test_report_on_the_proxy_is_recorded_on_both() -> None:
    now = [0.0]
    original = Grant(uuid4(), Fence(1, 1), deadline=5.0, clock=lambda: now[0])
    proxy = proxy_for(original)
    now[0] = 3.0

    proxy.report(7, 9)

    assert (original.state.copied, original.state.progressed_at) == ((7, 9), 3.0)
    assert (proxy.state.copied, proxy.state.progressed_at) == ((7, 9), 3.0)


def test_line_that_is_being_written_is_not_read_yet(tmp_path: Path) -> None:
    line = f'{{"event": "begun", "operation": "create", "volume_id": "{VOLUME}", "job_id": "{VOLUME}",'
    line += ' "fence": [1, 1], "pid": 1, "at": 0}\n'
    file = tmp_path / "journal"
    assert read(file) == []
    file.write_text(line + line[:16])

    assert [entry.event for entry in read(file)] == ["begun"]
