"""Examines Redis: whether it answers, its version, whether it takes writes, and what it does with its memory."""

from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any, Final

from domain.doctor.findings import Finding, fail, ok, warn
from domain.errors import Unavailable
from domain.jobs.transport.job_queue import JobQueue, QueueRefusesWrites

_MIN_VERSION: Final = (6, 2)
_POLICY: Final = "noeviction"


async def examine_redis(queue: JobQueue, backends: Iterable[str]) -> AsyncIterator[Finding]:
    """Yield the findings, with what Redis says of the queues of these backends."""
    try:
        await queue.ping([None, *backends])
    except QueueRefusesWrites as error:
        yield fail("redis writes", error.message, queue.write_errors.remedy)
    except Unavailable as error:
        yield fail("redis", error.message, "start it, or correct CISTERN_REDIS_URL; jobs are accepted and wait")
        return
    else:
        yield ok("redis writes", "accepted")
    try:
        facts = await queue.info()
    except Unavailable:
        yield warn("redis", "it does not say what it is", "allow the command INFO to the user, to examine it")
        return
    yield _version(str(facts.get("redis_version", "0.0")))
    yield _memory(facts)
    yield _persistence(facts)


def _version(version: str) -> Finding:
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    if numbers < _MIN_VERSION:
        return fail("redis", f"version {version}", "upgrade it to 6.2 or newer")
    return ok("redis", f"version {version}")


def _memory(facts: Mapping[str, Any]) -> Finding:
    policy = str(facts.get("maxmemory_policy", "unknown"))
    if policy != _POLICY:
        return warn("redis memory", f"maxmemory-policy {policy}", f"set it to {_POLICY}: messages may be dropped")
    return ok("redis memory", f"maxmemory-policy {policy}")


def _persistence(facts: Mapping[str, Any]) -> Finding:
    check = "redis persistence"
    if "err" in (facts.get("rdb_last_bgsave_status"), facts.get("aof_last_write_status")):
        return fail(check, "it cannot save to its disk", "free space or repair the disk; see the log of Redis")
    if facts.get("aof_enabled"):
        return ok(check, "appendonly")
    return ok(check, "no appendonly file: after a restart PostgreSQL has all jobs, and they start some seconds later")
