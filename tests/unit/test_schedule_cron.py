"""The times of cron expressions, as explicit instants, including the nights of daylight saving changes."""

from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise, takewhile
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.errors import Invalid
from domain.schedules.cron import CronSchedule

BERLIN = "Europe/Berlin"
LORD_HOWE = "Australia/Lord_Howe"
#: Zones whose clocks change by an hour, at midnight, by half an hour, or never.
ZONES = (BERLIN, "America/New_York", "America/Havana", "Asia/Beirut", "America/Santiago", "Asia/Kathmandu", LORD_HOWE)
MINUTE = timedelta(minutes=1)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def due(cron: str, zone: str, after: str, until: str) -> list[str]:
    """List the times after ``after``, up to and including ``until``."""
    times = takewhile(lambda time: time <= at(until), CronSchedule(cron, zone).times(at(after)))
    return [time.strftime("%dT%H:%MZ") for time in times]


@pytest.mark.parametrize(
    ("cron", "zone", "after", "until", "expected"),
    [
        pytest.param(
            *("30 2 * * *", BERLIN, "2026-03-27T12:00", "2026-03-31T00:00"),
            ["28T01:30Z", "29T01:00Z", "30T00:30Z"],
            id="skipped time: at the end of the gap",
        ),
        pytest.param(
            *("30 2 * * *", BERLIN, "2026-10-23T12:00", "2026-10-26T12:00"),
            ["24T00:30Z", "25T00:30Z", "26T01:30Z"],
            id="repeated time: the first time",
        ),
        pytest.param(
            *("0,15,30 2 * * *", BERLIN, "2026-03-29T00:00", "2026-03-29T23:00"),
            ["29T01:00Z"],
            id="several times skipped together: once",
        ),
        pytest.param(
            *("0 2,3 * * *", BERLIN, "2026-03-29T00:00", "2026-03-29T12:00"),
            ["29T01:00Z"],
            id="skipped, and due at the end of the gap: once",
        ),
        pytest.param(
            *("*/20 2 * * *", BERLIN, "2026-03-28T12:00", "2026-03-30T00:10"),
            ["29T01:00Z", "30T00:00Z"],
            id="minutes with a star, skipped",
        ),
        pytest.param(
            *("*/20 2 * * *", BERLIN, "2026-10-24T12:00", "2026-10-25T12:00"),
            ["25T00:00Z", "25T00:20Z", "25T00:40Z"],
            id="minutes with a star, repeated",
        ),
        pytest.param(
            *("0 */2 * * *", BERLIN, "2026-03-28T22:30", "2026-03-29T04:30"),
            ["28T23:00Z", "29T01:00Z", "29T02:00Z", "29T04:00Z"],
            id="steps of hours, one of them skipped",
        ),
        pytest.param(
            *("0 */2 * * *", BERLIN, "2026-10-24T21:30", "2026-10-25T05:30"),
            ["24T22:00Z", "25T00:00Z", "25T03:00Z", "25T05:00Z"],
            id="steps of hours, one of them repeated",
        ),
        pytest.param(
            *("0 1-23/6 * * *", BERLIN, "2026-03-29T00:00", "2026-03-30T00:00"),
            ["29T05:00Z", "29T11:00Z", "29T17:00Z", "29T23:00Z"],
            id="steps of hours that miss the change",
        ),
        pytest.param(
            *("30 * * * *", BERLIN, "2026-03-28T23:00", "2026-03-29T02:45"),
            ["28T23:30Z", "29T00:30Z", "29T01:30Z", "29T02:30Z"],
            id="every hour in spring",
        ),
        pytest.param(
            *("30 0-23 * * *", BERLIN, "2026-10-24T23:00", "2026-10-25T02:45"),
            ["24T23:30Z", "25T00:30Z", "25T01:30Z", "25T02:30Z"],
            id="every hour in autumn",
        ),
        pytest.param(
            *("15 2 * * *", LORD_HOWE, "2026-10-02T00:00", "2026-10-05T00:00"),
            ["02T15:45Z", "03T15:30Z", "04T15:15Z"],
            id="half an hour is skipped",
        ),
        pytest.param(
            *("45 1 * * *", LORD_HOWE, "2026-04-03T00:00", "2026-04-06T00:00"),
            ["03T14:45Z", "04T14:45Z", "05T15:15Z"],
            id="half an hour is repeated",
        ),
        pytest.param(
            *("*/15 * * * *", LORD_HOWE, "2026-10-03T15:00", "2026-10-03T16:00"),
            ["03T15:15Z", "03T15:30Z", "03T15:45Z", "03T16:00Z"],
            id="every quarter while half an hour is skipped",
        ),
        pytest.param(
            *("*/15 * * * *", LORD_HOWE, "2026-04-04T14:30", "2026-04-04T15:30"),
            ["04T14:45Z", "04T15:00Z", "04T15:15Z", "04T15:30Z"],
            id="every quarter while half an hour is repeated",
        ),
        pytest.param(
            *("30 * * * *", LORD_HOWE, "2026-04-04T14:00", "2026-04-04T17:00"),
            ["04T14:30Z", "04T15:00Z", "04T16:00Z", "04T17:00Z"],
            id="every hour: half past one is shown twice",
        ),
        pytest.param(
            *("0 * * * *", LORD_HOWE, "2026-10-03T14:00", "2026-10-03T17:00"),
            ["03T14:30Z", "03T16:00Z", "03T17:00Z"],
            id="every hour: two o'clock is not shown",
        ),
        pytest.param(
            *("0 0 * * *", "America/Santiago", "2026-09-05T12:00", "2026-09-07T12:00"),
            ["06T04:00Z", "07T03:00Z"],
            id="midnight is skipped",
        ),
        pytest.param(
            *("30 0 * * *", "America/Havana", "2026-10-31T12:00", "2026-11-02T12:00"),
            ["01T04:30Z", "02T05:30Z"],
            id="midnight is repeated",
        ),
        pytest.param(
            *("0 12 30 12 *", "Pacific/Apia", "2011-12-01T00:00", "2012-12-31T00:00"),
            ["30T10:00Z", "29T22:00Z"],
            id="a whole day is skipped",
        ),
        pytest.param(
            *("0 2 * * *", "UTC", "2026-03-28T02:00", "2026-03-30T02:00"),
            ["29T02:00Z", "30T02:00Z"],
            id="clocks that never change",
        ),
        pytest.param(
            *("0 0 29 2 *", "UTC", "2026-01-01T00:00", "2032-12-31T00:00"),
            ["29T00:00Z", "29T00:00Z"],
            id="leap days",
        ),
    ],
)
def test_times_of_cron_expression(cron: str, zone: str, after: str, until: str, expected: list[str]) -> None:
    assert due(cron, zone, after, until) == expected


@pytest.mark.parametrize(("day", "hours"), [("2026-03-28T12:00", 26), ("2026-10-24T12:00", 26)])
def test_every_ten_minutes_is_regular_through_both_clock_changes(day: str, hours: int) -> None:
    times = list(islice(CronSchedule("*/10 * * * *", BERLIN).times(at(day)), hours * 6))

    assert times == [at(day) + timedelta(minutes=10 * number) for number in range(1, hours * 6 + 1)]


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        ("2026-10-25T00:29:59", "2026-10-25T00:30"),  # local time 02:29, first occurrence
        ("2026-10-25T00:30", "2026-10-26T01:30"),
        ("2026-10-25T01:15", "2026-10-26T01:30"),  # local time 02:15, second occurrence
        ("2026-10-25T01:30", "2026-10-26T01:30"),
        ("2026-03-29T00:59:59", "2026-03-29T01:00"),
        ("2026-03-29T01:00", "2026-03-30T00:30"),
        ("2026-03-28T01:30:00.5", "2026-03-29T01:00"),
        ("2026-03-28T01:29:59.5", "2026-03-28T01:30"),
    ],
)
def test_start_amid_a_clock_change_gives_the_same_times(after: str, expected: str) -> None:
    assert CronSchedule("30 2 * * *", BERLIN).next(at(after)) == at(expected)


@pytest.mark.parametrize(("after", "expected"), [("00:30", "01:30"), ("01:30", "02:30"), ("00:59:59.9", "01:30")])
def test_hourly_schedule_starts_amid_a_clock_change(after: str, expected: str) -> None:
    assert CronSchedule("30 * * * *", BERLIN).next(at(f"2026-10-25T{after}")) == at(f"2026-10-25T{expected}")


def minute_by_minute(minutes: set[int], hours: set[int], zone: ZoneInfo, begin: datetime, count: int) -> list[datetime]:
    """Apply the rule minute by minute: a slow reference implementation."""
    found: list[datetime] = []
    seen: set[datetime] = set()
    previous = (begin - 1500 * MINUTE).astimezone(zone).replace(tzinfo=None)
    for number in range(-1499, count):
        local = (begin + number * MINUTE).astimezone(zone).replace(tzinfo=None)
        skipped = {previous + step * MINUTE for step in range(1, int((local - previous) / MINUTE))}
        times = {local} if len(hours) == 24 else ({local} | skipped) - seen
        seen |= {local} | skipped
        previous = local
        if number > 0 and any(time.minute in minutes and time.hour in hours for time in times):
            found.append(begin + number * MINUTE)
    return found


@st.composite
def nights(draw: st.DrawFn) -> tuple[str, datetime]:
    """Generate a time within two days of a clock change, or any time in zones without changes."""
    name, year = draw(st.sampled_from(ZONES)), draw(st.integers(2000, 2037))
    zone, first = ZoneInfo(name), datetime(year, 1, 1, tzinfo=UTC)
    days = [first + timedelta(days=day) for day in range(366)]
    changes = [
        day for day, after in pairwise(days) if day.astimezone(zone).utcoffset() != after.astimezone(zone).utcoffset()
    ]
    day = draw(st.sampled_from(changes or days))
    return name, day - timedelta(days=1) + draw(st.integers(0, 1440)) * MINUTE


@settings(max_examples=60, deadline=None)
@given(
    nights(),
    st.sets(st.integers(0, 59), min_size=1, max_size=4),
    st.one_of(st.just(set(range(24))), st.sets(st.integers(0, 4), min_size=1), st.just(set(range(0, 24, 2)))),
)
def test_times_are_those_that_local_clocks_show(
    night: tuple[str, datetime], minutes: set[int], hours: set[int]
) -> None:
    name, begin = night
    cron = f"{','.join(map(str, minutes))} {','.join(map(str, hours))} * * *"
    schedule, end = CronSchedule(cron, name), begin + timedelta(days=3)
    times = list(takewhile(lambda time: time < end, schedule.times(begin)))

    assert times == minute_by_minute(minutes, hours, ZoneInfo(name), begin, 3 * 1440)
    assert all(schedule.next(earlier) == later for earlier, later in pairwise(times))


@pytest.mark.parametrize(
    "cron",
    [
        "",
        "* * * *",
        "0 * * * * *",
        "@daily",
        "60 * * * *",
        "*/0 * * * *",
        "0 24 * * *",
        "0 0 30 2 *",
        "0 0 31 4,6 *",
        "0 0 * * 8",
        "every day at noon",
        "0 0 * * \u2460",
        "0" * 101 + " * * * *",
        "*/90 * * * *",
        "*/60 * * * *",
        "0 */36 * * *",
        "0,5-50/61 * * * *",
        "10-20/30 * * * *",
        "0 8-18/12 * * *",
        "0 0 * * 1-5/5",
        "0 0 */31 * *",
        "0 0 1 */12 *",
        "0 0 * * */7",
    ],
)
def test_invalid_expression_is_refused_with_its_field(cron: str) -> None:
    with pytest.raises(Invalid) as refused:
        CronSchedule(cron, "UTC").next(at("2026-01-01T00:00"))

    assert refused.value.details["field"] == "cron"


def test_step_that_is_never_reached_is_refused_with_what_it_would_do() -> None:
    with pytest.raises(Invalid, match="a step of 90 minutes, but only 60 of them: a step starts again with each hour"):
        CronSchedule("*/90 * * * *", "UTC")


@pytest.mark.parametrize(
    "cron", ["*/59 * * * *", "10-20/10 * * * *", "0 */23 * * *", "0 0 */30 * *", "0 0 1 */11 *", "0 0 * * */6"]
)
def test_step_within_its_range_is_accepted(cron: str) -> None:
    assert CronSchedule(cron, "UTC").next(at("2026-01-01T00:00")) > at("2026-01-01T00:00")


@pytest.mark.parametrize(
    "zone", ["", "Mars/Olympus", "localtime", "America", "../../etc/passwd", "Europe/Berlin\0", "+02:00"]
)
def test_unknown_time_zone_is_refused_with_its_field(zone: str) -> None:
    with pytest.raises(Invalid) as refused:
        CronSchedule("* * * * *", zone)

    assert refused.value.details["field"] == "time_zone"
