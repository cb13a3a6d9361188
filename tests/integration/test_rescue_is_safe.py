"""Leases also run out while PostgreSQL is away: nobody is rescued before every live worker could renew."""

import os

import pytest
from uuid_utils.compat import uuid7

from domain.errors import DatabaseUnavailable
from domain.jobs.engine import JobEngine
from domain.jobs.model import Worker
from domain.jobs.store.leases import BEATS_PER_LEASE, LeaseRepository, heartbeat_timeout, max_renewal_delay
from domain.services import Services
from tests.integration.job_builders import an_engine, run_out, sql
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


def a_worker(services: Services, lease: float = LEASE) -> JobEngine:
    """A worker as it is in production."""
    worker = Worker(id=uuid7(), host="test", pid=os.getpid())
    return JobEngine(services.database, services.queue, services.handlers, worker=worker, lease=lease)


async def an_orphan(services: Services) -> None:
    job = await at_work(services, an_engine(services))
    await run_out(services, job.id)


async def steady_for(services: Services, engine: JobEngine, seconds: float) -> None:
    """Let time go by for a worker that beats."""
    await sql(
        services,
        f"UPDATE workers SET uninterrupted_since = now() - interval '{seconds} seconds' WHERE id = :id",
        id=engine._worker.id,
    )


async def test_a_worker_that_has_been_beating_for_long_enough_rescues(services: Services) -> None:
    await an_orphan(services)
    engine = a_worker(services)
    await engine.renew([])
    await steady_for(services, engine, max_renewal_delay(LEASE) + 1)
    await engine.renew([])

    assert await engine.rescue() == 1


async def test_a_worker_that_has_just_started_rescues_nobody(services: Services) -> None:
    await an_orphan(services)
    engine = a_worker(services)
    before_its_first_beat = await engine.rescue()
    await engine.renew([])

    assert (before_its_first_beat, await engine.rescue()) == (0, 0)


async def test_a_worker_that_found_postgresql_away_starts_anew(services: Services) -> None:
    await an_orphan(services)
    engine = a_worker(services)
    await engine.renew([])
    await steady_for(services, engine, 3600)
    engine.note_outage()
    await engine.renew([])

    assert await engine.rescue() == 0


async def test_a_beat_that_failed_is_such_a_gap_too(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    await an_orphan(services)
    engine = a_worker(services)
    await engine.renew([])
    await steady_for(services, engine, 3600)

    async def away(*_: object, **__: object) -> None:
        raise DatabaseUnavailable

    with monkeypatch.context() as broken:
        broken.setattr(LeaseRepository, "record_heartbeat", away)
        with pytest.raises(DatabaseUnavailable):
            await engine.renew([])
    await engine.renew([])

    assert await engine.rescue() == 0


async def test_a_worker_that_slept_through_an_outage_starts_anew(services: Services) -> None:
    """Stopped, or suspended with its machine: it has noticed nothing, but PostgreSQL sees the gap."""
    await an_orphan(services)
    engine = a_worker(services)
    await engine.renew([])
    await steady_for(services, engine, 3600)
    await sql(services, "UPDATE workers SET heartbeat_at = now() - interval '5 minutes' WHERE host = 'test'")
    on_waking_up = await engine.rescue()
    await engine.renew([])

    assert (on_waking_up, await engine.rescue()) == (0, 0)


async def test_a_rescue_that_comes_late_because_postgresql_stood_still_rescues_nobody(services: Services) -> None:
    """No connection was lost, and no beat was in vain yet; but others beat before us, so their leases end before."""
    engine = a_worker(services)
    await engine.renew([])
    await steady_for(services, engine, 3600)
    await an_orphan(services)
    await sql(services, f"UPDATE workers SET heartbeat_at = now() - interval '{LEASE * 0.7} seconds'")
    on_going_on = await engine.rescue()
    await engine.renew([])

    assert (on_going_on, await engine.rescue()) == (0, 1)


async def test_a_worker_that_renews_more_slowly_is_waited_for(services: Services) -> None:
    await an_orphan(services)
    engine, slow = a_worker(services), a_worker(services, lease=60)
    assert max_renewal_delay(60) > max_renewal_delay(LEASE) + 2
    await slow.renew([])
    await engine.renew([])
    await steady_for(services, engine, max_renewal_delay(LEASE) + 1)
    too_soon = await engine.rescue()
    await steady_for(services, engine, max_renewal_delay(60) + 1)

    assert (too_soon, await engine.rescue()) == (0, 1)


async def test_nobody_is_rescued_in_the_first_lease_of_a_postgresql(services: Services) -> None:
    await an_orphan(services)
    engine = a_worker(services)
    await engine.renew([])
    await steady_for(services, engine, 3600)
    await postgresql_started(services, "1 second")
    too_soon = await engine.rescue()
    await postgresql_started(services, "4 seconds")

    assert (too_soon, await engine.rescue()) == (0, 1)


async def test_a_worker_lives_on_whose_lease_ran_out_while_postgresql_was_away(services: Services) -> None:
    alive, other = a_worker(services), a_worker(services)
    job = await at_work(services, alive)
    await alive.renew([job.id])
    await other.renew([])
    await steady_for(services, other, 3600)
    await run_out(services, job.id)
    other.note_outage()  # both found PostgreSQL away; the other one is back first
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
        " uninterrupted_since = uninterrupted_since + interval '1 hour'",
    )
    await postgresql_started(services, "-1 hour")


async def test_a_clock_that_steps_back_does_not_keep_orphans_waiting_until_it_has_caught_up(services: Services) -> None:
    engine = a_worker(services)
    await engine.renew([])
    await clock_steps_back(services)
    await an_orphan(services)
    await engine.renew([])
    await steady_for(services, engine, max_renewal_delay(LEASE) + 1)

    assert await engine.rescue() == 1


async def test_nobody_is_rescued_before_all_could_renew_after_such_a_step(services: Services) -> None:
    engine = a_worker(services)
    await engine.renew([])
    await steady_for(services, engine, 7200)
    await clock_steps_back(services)
    await an_orphan(services)
    before_its_next_beat = await engine.rescue()
    await engine.renew([])

    assert (before_its_next_beat, await engine.rescue()) == (0, 0)


async def test_a_row_of_the_version_before_is_a_steady_worker(services: Services) -> None:
    """It wrote neither column; what it rescues is its own affair, and nobody waits for it longer."""
    await sql(services, "INSERT INTO workers (id, host, pid) VALUES (gen_random_uuid(), 'old', 1)")

    assert await sql(services, "SELECT max_renewal_delay, uninterrupted_since <= now() FROM workers") == [(0.0, True)]


@pytest.mark.parametrize("lease", [1, 3, 15, 60, 3600])
def test_two_beats_and_a_rest_fit_into_the_time_that_others_wait(lease: float) -> None:
    rest = min(lease / 3 / 5, 1.0)

    assert heartbeat_timeout(lease) + rest + 1 <= max_renewal_delay(lease)


@pytest.mark.parametrize("lease", [1, 3, 15, 60, 3600])
def test_who_has_not_noticed_that_anything_happened_beats_within_that_time_too(lease: float) -> None:
    assert lease / BEATS_PER_LEASE + heartbeat_timeout(lease) <= max_renewal_delay(lease)
