"""Leases also run out while PostgreSQL is away: nobody is rescued before every live worker could renew."""

import os

import pytest
from uuid_utils.compat import uuid7

from domain.errors import DatabaseUnavailable
from domain.jobs.foreman import Foreman
from domain.jobs.leases import BEATS_PER_LEASE, LeaseRepository, beat_patience, renews_within
from domain.jobs.model import Worker
from domain.services import Services
from tests.integration.job_builders import a_foreman, run_out, sql
from tests.integration.test_rescue import at_work

LEASE = 3.0


@pytest.fixture(autouse=True)
async def old_postgresql(services: Services) -> None:
    """A server that may have started only now, and is said to have started long ago."""
    await postgresql_started(services, "1 day")


async def postgresql_started(services: Services, age: str) -> None:
    """Have this database say so: what stands in the path first hides PostgreSQL's own function."""
    await sql(
        services,
        "CREATE OR REPLACE FUNCTION public.pg_postmaster_start_time() RETURNS timestamptz"
        f" LANGUAGE sql AS $$ SELECT now() - interval '{age}' $$",
    )
    (name,) = (await sql(services, "SELECT current_database()"))[0]
    await sql(services, f'ALTER DATABASE "{name}" SET search_path = public, pg_catalog')
    await services.database._engine.dispose()


def a_worker(services: Services, lease: float = LEASE) -> Foreman:
    """A worker as it is in production."""
    worker = Worker(id=uuid7(), host="test", pid=os.getpid())
    return Foreman(services.database, services.queue, services.handlers, worker=worker, lease=lease)


async def an_orphan(services: Services) -> None:
    job = await at_work(services, a_foreman(services))
    await run_out(services, job.id)


async def steady_for(services: Services, foreman: Foreman, seconds: float) -> None:
    """Let time go by for a worker that beats."""
    await sql(
        services,
        f"UPDATE workers SET steady_since = now() - interval '{seconds} seconds' WHERE id = :id",
        id=foreman._worker.id,
    )


async def test_a_worker_that_has_been_beating_for_long_enough_rescues(services: Services) -> None:
    await an_orphan(services)
    foreman = a_worker(services)
    await foreman.renew([])
    await steady_for(services, foreman, renews_within(LEASE) + 1)
    await foreman.renew([])

    assert await foreman.rescue() == 1


async def test_a_worker_that_has_just_started_rescues_nobody(services: Services) -> None:
    await an_orphan(services)
    foreman = a_worker(services)
    before_its_first_beat = await foreman.rescue()
    await foreman.renew([])

    assert (before_its_first_beat, await foreman.rescue()) == (0, 0)


async def test_a_worker_that_found_postgresql_away_starts_anew(services: Services) -> None:
    await an_orphan(services)
    foreman = a_worker(services)
    await foreman.renew([])
    await steady_for(services, foreman, 3600)
    foreman.falter()
    await foreman.renew([])

    assert await foreman.rescue() == 0


async def test_a_beat_that_failed_is_such_a_gap_too(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    await an_orphan(services)
    foreman = a_worker(services)
    await foreman.renew([])
    await steady_for(services, foreman, 3600)

    async def away(*_: object, **__: object) -> None:
        raise DatabaseUnavailable

    with monkeypatch.context() as broken:
        broken.setattr(LeaseRepository, "beat", away)
        with pytest.raises(DatabaseUnavailable):
            await foreman.renew([])
    await foreman.renew([])

    assert await foreman.rescue() == 0


async def test_a_worker_that_slept_through_an_outage_starts_anew(services: Services) -> None:
    """Stopped, or suspended with its machine: it has noticed nothing, but PostgreSQL sees the gap."""
    await an_orphan(services)
    foreman = a_worker(services)
    await foreman.renew([])
    await steady_for(services, foreman, 3600)
    await sql(services, "UPDATE workers SET heartbeat_at = now() - interval '5 minutes' WHERE host = 'test'")
    on_waking_up = await foreman.rescue()
    await foreman.renew([])

    assert (on_waking_up, await foreman.rescue()) == (0, 0)


async def test_a_rescue_that_comes_late_because_postgresql_stood_still_rescues_nobody(services: Services) -> None:
    """No connection was lost, and no beat was in vain yet; but others beat before us, so their leases end before."""
    foreman = a_worker(services)
    await foreman.renew([])
    await steady_for(services, foreman, 3600)
    await an_orphan(services)
    await sql(services, f"UPDATE workers SET heartbeat_at = now() - interval '{LEASE * 0.7} seconds'")
    on_going_on = await foreman.rescue()
    await foreman.renew([])

    assert (on_going_on, await foreman.rescue()) == (0, 1)


async def test_a_worker_that_renews_more_slowly_is_waited_for(services: Services) -> None:
    await an_orphan(services)
    foreman, slow = a_worker(services), a_worker(services, lease=60)
    assert renews_within(60) > renews_within(LEASE) + 2
    await slow.renew([])
    await foreman.renew([])
    await steady_for(services, foreman, renews_within(LEASE) + 1)
    too_soon = await foreman.rescue()
    await steady_for(services, foreman, renews_within(60) + 1)

    assert (too_soon, await foreman.rescue()) == (0, 1)


async def test_nobody_is_rescued_in_the_first_lease_of_a_postgresql(services: Services) -> None:
    await an_orphan(services)
    foreman = a_worker(services)
    await foreman.renew([])
    await steady_for(services, foreman, 3600)
    await postgresql_started(services, "1 second")
    too_soon = await foreman.rescue()
    await postgresql_started(services, "4 seconds")

    assert (too_soon, await foreman.rescue()) == (0, 1)


async def test_a_worker_lives_on_whose_lease_ran_out_while_postgresql_was_away(services: Services) -> None:
    alive, other = a_worker(services), a_worker(services)
    job = await at_work(services, alive)
    await alive.renew([job.id])
    await other.renew([])
    await steady_for(services, other, 3600)
    await run_out(services, job.id)
    other.falter()  # both found PostgreSQL away; the other one is back first
    await other.renew([])
    assert await other.rescue() == 0
    renewed = await alive.renew([job.id])
    await steady_for(services, other, 3600)

    assert ([renewal.job_id for renewal in renewed.renewals], await other.rescue()) == ([job.id], 0)


async def clock_steps_back(services: Services) -> None:
    """Have PostgreSQL's clock step back by an hour: whatever was just now, is in an hour."""
    await sql(
        services,
        "UPDATE workers SET heartbeat_at = heartbeat_at + interval '1 hour',"
        " steady_since = steady_since + interval '1 hour'",
    )
    await postgresql_started(services, "-1 hour")


async def test_a_clock_that_steps_back_does_not_keep_orphans_waiting_until_it_has_caught_up(services: Services) -> None:
    foreman = a_worker(services)
    await foreman.renew([])
    await clock_steps_back(services)
    await an_orphan(services)
    await foreman.renew([])
    await steady_for(services, foreman, renews_within(LEASE) + 1)

    assert await foreman.rescue() == 1


async def test_nobody_is_rescued_before_all_could_renew_after_such_a_step(services: Services) -> None:
    foreman = a_worker(services)
    await foreman.renew([])
    await steady_for(services, foreman, 7200)
    await clock_steps_back(services)
    await an_orphan(services)
    before_its_next_beat = await foreman.rescue()
    await foreman.renew([])

    assert (before_its_next_beat, await foreman.rescue()) == (0, 0)


async def test_a_row_of_the_version_before_is_a_steady_worker(services: Services) -> None:
    """It wrote neither column; what it rescues is its own affair, and nobody waits for it longer."""
    await sql(services, "INSERT INTO workers (id, host, pid) VALUES (gen_random_uuid(), 'old', 1)")

    assert await sql(services, "SELECT renews_within, steady_since <= now() FROM workers") == [(0.0, True)]


@pytest.mark.parametrize("lease", [1, 3, 15, 60, 3600])
def test_two_beats_and_a_rest_fit_into_the_time_that_others_wait(lease: float) -> None:
    rest = min(lease / 3 / 5, 1.0)

    assert beat_patience(lease) + rest + 1 <= renews_within(lease)


@pytest.mark.parametrize("lease", [1, 3, 15, 60, 3600])
def test_who_has_not_noticed_that_anything_happened_beats_within_that_time_too(lease: float) -> None:
    assert lease / BEATS_PER_LEASE + beat_patience(lease) <= renews_within(lease)
