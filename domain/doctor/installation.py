"""Examines what PostgreSQL knows of an installation: its backends, workers and keys, and how long jobs wait."""

from collections.abc import AsyncIterator, Iterable
from typing import Final

from domain.access.service import KeyService
from domain.db.database import Database
from domain.doctor.findings import Finding, fail, ok, warn
from domain.jobs.stats import StatsCache
from domain.jobs.workers import WorkerDirectory
from domain.storage.directory import BackendDirectory, BackendStatus

#: For how many seconds a due job may wait before that is worth a look.
_MAX_WAIT: Final = 60.0
#: How long counting the queue may take, in seconds: somebody waits for the answer.
_COUNT_SECONDS: Final = 5.0


async def examine_installation(
    database: Database, directory: BackendDirectory, *, lease: float
) -> AsyncIterator[Finding]:
    """Yield the findings; ``lease`` is the length of a lease in seconds.

    Raises:
        DatabaseUnavailable: PostgreSQL does not answer.
    """
    for one in await _workers(database, lease):
        yield one
    for one in _backends(directory.all()):
        yield one
    yield await _queue(database)
    if await KeyService(database).any():
        yield ok("keys", "there are keys")
    else:
        yield fail("keys", "there is no key, and the API refuses all", "cistern keys create NAME --role system")


async def _workers(database: Database, lease: float) -> Iterable[Finding]:
    found = await WorkerDirectory(database, lease=lease).all()
    alive = [worker for worker in found if worker.is_alive]
    if not alive:
        return [fail("workers", "none is alive: jobs are accepted and wait", "start one with `cistern work`")]
    hosts = sorted({worker.row.host for worker in alive})
    slots = sum(worker.row.slots or 0 for worker in alive)
    running = sum(len(worker.jobs) for worker in alive)
    findings = [ok("workers", f"{len(alive)} alive on {', '.join(hosts)}: {running} of {slots} slots in use")]
    if silent := [worker.row.host for worker in found if not worker.is_alive]:
        remedy = "see their logs, unless they were ended; they are forgotten after an hour"
        findings.append(warn("workers", f"{len(silent)} silent on {', '.join(sorted(set(silent)))}", remedy))
    return findings


def _backends(found: Iterable[BackendStatus]) -> Iterable[Finding]:
    statuses = list(found)
    if not statuses:
        yield fail("backends", "there are none", "start a worker: it registers those of CISTERN_BACKENDS")
    for status in statuses:
        check = f"backend {status.name}"
        if status.problem is not None:
            remedy = "jobs on it wait: mount or repair the storage, or start a worker that has it in CISTERN_BACKENDS"
            yield fail(check, status.problem, remedy)
            continue
        hosts = sorted({server.host for server in status.servers if server.problem is None})
        yield ok(check, f"{status.row.driver}, served by {', '.join(hosts)}")
        for server in status.servers:
            if server.problem is not None:
                yield warn(check, f"{server.host}: {server.problem}", "other workers serve it; repair it on this host")


async def _queue(database: Database) -> Finding:
    stats = await StatsCache(database, timeout=_COUNT_SECONDS).latest()
    if stats is None:
        return warn("queue", f"PostgreSQL did not count it within {_COUNT_SECONDS:g} s", "see its load")
    waited = stats.oldest_due_seconds or 0.0
    detail = f"{stats.queue_depth:,} jobs are due, the oldest for {waited:,.0f} s" if stats.queue_depth else "empty"
    if waited > _MAX_WAIT:
        return warn("queue", detail, "start more workers, or see why those that run start no jobs")
    return ok("queue", detail)
