"""Planning of due times: the latest is started while its catch-up window is open, the others are missed."""

from datetime import UTC, datetime, timedelta

import pytest

from domain.schedules.cron import CronSchedule, PlannedRun, Span, plan_run

HOURLY = CronSchedule("0 * * * *", "UTC")


def at(text: str) -> datetime:
    return datetime.fromisoformat(f"2026-01-31T{text}").replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("now", "window", "plan"),
    [
        pytest.param("02:00", 0, PlannedRun(None, at("02:00"), at("03:00")), id="on time"),
        pytest.param("02:01", 0, PlannedRun(None, at("02:00"), at("03:00")), id="within a minute is on time"),
        pytest.param("02:01:01", 0, PlannedRun(Span(at("02:00"), at("02:00"), 1), None, at("03:00")), id="too late"),
        pytest.param("02:30", 1800, PlannedRun(None, at("02:00"), at("03:00")), id="at the end of the window"),
        pytest.param(
            *("04:10", 3600, PlannedRun(Span(at("02:00"), at("03:00"), 2), at("04:00"), at("05:00"))),
            id="the latest is caught up",
        ),
        pytest.param(
            *("04:10", 60, PlannedRun(Span(at("02:00"), at("04:00"), 3), None, at("05:00"))),
            id="the latest is missed too",
        ),
        pytest.param(
            *("03:00", 3600, PlannedRun(Span(at("02:00"), at("02:00"), 1), at("03:00"), at("04:00"))),
            id="one missed, one on time",
        ),
    ],
)
def test_due_times_are_planned(now: str, window: int, plan: PlannedRun) -> None:
    assert plan_run(HOURLY, at("02:00"), now=at(now), window=timedelta(seconds=window)) == plan
