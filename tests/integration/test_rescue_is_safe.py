"""Leases also expire during an outage of PostgreSQL: no job is rescued before every live worker could renew."""

import os

import pytest
from uuid_utils.compat import uuid7

from domain.errors import DatabaseUnavailable
from domain.jobs.engine import JobEngine
from domain.jobs.model import Worker
from domain.jobs.store.leases import BEATS_PER_LEASE, LeaseRepository, heartbeat_timeout, max_renewal_delay
from domain.services import Services
from tests.integration.job_builders import an_engine, run_out, sql
from tests.integration.test_rescue import a_running_expand

LEASE = 3.0


@pytest.fixture(autouse=True)
async def old_postgresql(services: Services) -> None:
    """Make PostgreSQL report an old start time, as the server of the tests may have started just now."""
    await postgresql_started(services, "1 day")


async def postgresql_started(services: Services, age: str) -> None:
    """Set the start time that this database reports: a function earlier in the search path hides PostgreSQL's own."""
    await sql(
        services,
        "CREATE OR REPLACE FUNCTION public.pg_postmaster_start_time() RETURNS timestamptz"
        f" LANGUAGE sql AS $$ SELECT now() - interval '{age}' $$",
    )
    (name,) = (await sql(services, "SELECT current_database()"))[0]
    await sql(services, f'ALTER DATABASE "{name}" SET search_path = public, pg_catalog')
    await services.database._engine.dispose()


def a_worker(services: Services, lease: float = LEASE) -> JobEngine:
    """Return a worker that respects the grace period, as in production."""
    worker = Worker(id=uuid7(), host="test", pid=os.getpid())
    return JobEngine(
        services.database,
        services.queue,
        services.handlers,
        worker=worker,
        served=services.backends.served,
        lease=lease,
    )


async def an_orphan(services: Services) -> None:
    job = await a_running_expand(services, an_engine(services))
    await run_out(services, job.id)


async def uninterrupted_for(services: Services, engine: JobEngine, seconds: float) -> None:
    """Date the start of a worker's uninterrupted heartbeats back."""
    await sql(
        services,
        f"UPDATE workers SET uninterrupted_since = now() - interval '{seconds} seconds' WHERE id = :id",
        id=engine._worker.id,
    )


async def test_worker_with_long_uninterrupted_heartbeats_rescues(services: Services) -> None:
    await an_orphan(services)
    engine = a_worker(services)
    await engine.renew([])
    await uninterrupted_for(services, engine, max_renewal_delay(LEASE) + 1)
    await engine.renew([])

    assert await engine.maintenance.rescue() == 1


async def test_newly_started_worker_does_not_rescue(services: Services) -> None:
    await an_orphan(services)
    engine = a_worker(services)
    before_first_heartbeat = await engine.maintenance.rescue()
    await engine.renew([])

    assert (before_first_heartbeat, await engine.maintenance.rescue()) == (0, 0)


async def test_worker_that_noticed_an_outage_must_wait_again(services: Services) -> None:
    await an_orphan(services)
    engine = a_worker(services)
    await engine.renew([])
    await uninterrupted_for(services, engine, 3600)
    engine.note_outage()
    await engine.renew([])

    assert await engine.maintenance.rescue() == 0


async def test_failed_heartbeat_is_a_gap(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    await an_orphan(services)
    engine = a_worker(services)
    await engine.renew([])
    await uninterrupted_for(services, engine, 3600)

    async def unavailable(*_: object, **__: object) -> None:
        raise DatabaseUnavailable

    with monkeypatch.context() as broken:
        broken.setattr(LeaseRepository, "record_heartbeat", unavailable)
        with pytest.raises(DatabaseUnavailable):
            await engine.renew([])
    await engine.renew([])

    assert await engine.maintenance.rescue() == 0


async def test_worker_suspended_during_an_outage_must_wait_again(services: Services) -> None:
    """The process was stopped or the host suspended: the worker noticed nothing, but PostgreSQL sees the gap."""
    await an_orphan(services)
    engine = a_worker(services)
    await engine.renew([])
    await uninterrupted_for(services, engine, 3600)
    await sql(services, "UPDATE workers SET heartbeat_at = now() - interval '5 minutes' WHERE host = 'test'")
    on_resume = await engine.maintenance.rescue()
    await engine.renew([])

    assert (on_resume, await engine.maintenance.rescue()) == (0, 0)


async def test_rescue_delayed_by_a_paused_postgresql_does_nothing(services: Services) -> None:
    """No connection was lost and no heartbeat failed, but others renewed earlier, so their leases expire earlier."""
    engine = a_worker(services)
    await engine.renew([])
    await uninterrupted_for(services, engine, 3600)
    await an_orphan(services)
    await sql(services, f"UPDATE workers SET heartbeat_at = now() - interval '{LEASE * 0.7} seconds'")
    on_resume = await engine.maintenance.rescue()
    await engine.renew([])

    assert (on_resume, await engine.maintenance.rescue()) == (0, 1)


async def test_rescue_waits_for_the_longest_renewal_delay(services: Services) -> None:
    await an_orphan(services)
    engine, slow = a_worker(services), a_worker(services, lease=60)
    assert max_renewal_delay(60) > max_renewal_delay(LEASE) + 2
    await slow.renew([])
    await engine.renew([])
    await uninterrupted_for(services, engine, max_renewal_delay(LEASE) + 1)
    too_soon = await engine.maintenance.rescue()
    await uninterrupted_for(services, engine, max_renewal_delay(60) + 1)

    assert (too_soon, await engine.maintenance.rescue()) == (0, 1)


async def test_no_rescue_within_a_lease_of_postgresqls_start(services: Services) -> None:
    await an_orphan(services)
    engine = a_worker(services)
    await engine.renew([])
    await uninterrupted_for(services, engine, 3600)
    await postgresql_started(services, "1 second")
    too_soon = await engine.maintenance.rescue()
    await postgresql_started(services, "4 seconds")

    assert (too_soon, await engine.maintenance.rescue()) == (0, 1)


async def test_live_worker_keeps_a_job_whose_lease_expired_during_an_outage(services: Services) -> None:
    alive, other = a_worker(services), a_worker(services)
    job = await a_running_expand(services, alive)
    await alive.renew([job.id])
    await other.renew([])
    await uninterrupted_for(services, other, 3600)
    await run_out(services, job.id)
    other.note_outage()  # both noticed the outage; the other one reconnects first
    await other.renew([])
    assert await other.maintenance.rescue() == 0
    renewed = await alive.renew([job.id])
    await uninterrupted_for(services, other, 3600)

    assert ([renewal.job_id for renewal in renewed.renewals], await other.maintenance.rescue()) == ([job.id], 0)


async def clock_steps_back(services: Services) -> None:
    """Make PostgreSQL's clock step back by an hour: recent times are now in the future."""
    await sql(
        services,
        "UPDATE workers SET heartbeat_at = heartbeat_at + interval '1 hour',"
        " uninterrupted_since = uninterrupted_since + interval '1 hour'",
    )
    await postgresql_started(services, "-1 hour")


async def test_orphan_is_rescued_soon_after_the_clock_stepped_back(services: Services) -> None:
    engine = a_worker(services)
    await engine.renew([])
    await clock_steps_back(services)
    await an_orphan(services)
    await engine.renew([])
    await uninterrupted_for(services, engine, max_renewal_delay(LEASE) + 1)

    assert await engine.maintenance.rescue() == 1


async def test_no_rescue_right_after_the_clock_stepped_back(services: Services) -> None:
    engine = a_worker(services)
    await engine.renew([])
    await uninterrupted_for(services, engine, 7200)
    await clock_steps_back(services)
    await an_orphan(services)
    before_next_heartbeat = await engine.maintenance.rescue()
    await engine.renew([])

    assert (before_next_heartbeat, await engine.maintenance.rescue()) == (0, 0)


async def test_worker_row_of_an_older_version_counts_as_uninterrupted(services: Services) -> None:
    """An older version writes neither column, so the defaults apply: uninterrupted, with no renewal delay."""
    await sql(services, "INSERT INTO workers (id, host, pid) VALUES (gen_random_uuid(), 'old', 1)")

    assert await sql(services, "SELECT max_renewal_delay, uninterrupted_since <= now() FROM workers") == [(0.0, True)]


@pytest.mark.parametrize("lease", [1, 3, 15, 60, 3600])
def test_max_renewal_delay_covers_two_heartbeats_and_a_pause(lease: float) -> None:
    pause = min(lease / 3 / 5, 1.0)

    assert heartbeat_timeout(lease) + pause + 1 <= max_renewal_delay(lease)


@pytest.mark.parametrize("lease", [1, 3, 15, 60, 3600])
def test_max_renewal_delay_covers_an_interval_and_a_heartbeat(lease: float) -> None:
    assert lease / BEATS_PER_LEASE + heartbeat_timeout(lease) <= max_renewal_delay(lease)
