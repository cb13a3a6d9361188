"""The whole examination, in the order in which things depend on each other."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

from domain.db.database import Database
from domain.doctor.findings import Finding, State, fail
from domain.doctor.installation import examine_installation
from domain.doctor.postgresql import examine_postgresql
from domain.doctor.redis import examine_redis
from domain.errors import ConfigurationError, DatabaseUnavailable
from domain.jobs.transport.job_queue import JobQueue, QueueKeys
from domain.storage.directory import BackendDirectory


async def examine(
    database_url: str, redis_url: str, *, transaction_seconds: float, lease: float
) -> AsyncIterator[Finding]:
    """Yield the findings on the servers at these URLs, and on what PostgreSQL knows of the installation.

    ``transaction_seconds`` limits a transaction; ``lease`` is the length of a lease in seconds.
    """
    async with AsyncExitStack() as stack:
        database = Database(database_url, pool_size=1, timeout=transaction_seconds)
        stack.push_async_callback(database.close)
        directory, keys = BackendDirectory(database), QueueKeys()
        findings = await examine_postgresql(database)
        for finding in findings:
            yield finding
        is_usable = findings[0].state is State.OK
        try:
            if is_usable:
                keys = QueueKeys.of(await database.installation())
                await directory.refresh()
            async for finding in _examine_queue(redis_url, keys, directory):
                yield finding
            if is_usable:
                async for finding in examine_installation(database, directory, lease=lease):
                    yield finding
        except DatabaseUnavailable as error:
            yield fail("postgresql", error.message, "it answered before: see its log")


async def _examine_queue(url: str, keys: QueueKeys, directory: BackendDirectory) -> AsyncIterator[Finding]:
    try:
        queue = JobQueue.open(url, keys)
    except ConfigurationError as error:
        yield fail("redis", error.message, "correct CISTERN_REDIS_URL")
        return
    try:
        async for finding in examine_redis(queue, directory):
            yield finding
    finally:
        await queue.close()
