"""More processes than PostgreSQL has connections for: requests get a 503 at worst, and no job loses its lease."""

import re

import pytest
from sqlalchemy import text

from domain.embedded import servers as server_programs
from tests.acceptance.clients import Expectations, run_clients
from tests.acceptance.judge import StormResult, check_storm
from tests.acceptance.scale import LONG
from tests.acceptance.stack import Stack, running_stack

WORKERS, CLIENTS, CONNECTIONS = (8, 64, 40)

#: What the log says of lost leases and failed attempts, whatever their job.
_EVENTS = re.compile(r"heartbeat\.|jobs\.rescued|job\.(stalled|superseded|settled_or_superseded|handler_error)|code=")
_REPEATED = text("SELECT id, kind, attempt, epoch, error FROM jobs WHERE attempt > 1 ORDER BY id")


async def describe(stack: Stack, result: StormResult) -> str:
    """Return what explains a second attempt: counters, the jobs that needed one, and what the log says of them."""
    async with stack.database.transaction() as session:
        repeated = [dict(row) for row in (await session.execute(_REPEATED)).mappings()]
    ids = [str(job["id"]) for job in repeated]
    lines = stack.log.read_text(errors="replace").splitlines()
    about = [line for line in lines if _EVENTS.search(line) or any(job_id in line for job_id in ids)]
    return "\n".join([f"attempts {dict(result.attempts)}, counters {result.counters}", *map(str, repeated), *about])


@pytest.mark.skipif(not LONG, reason="eight workers; CISTERN_TEST_LONG=1 runs it")
async def test_too_few_connections_cost_no_lease_and_no_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(server_programs.OPTIONS, "max_connections", str(CONNECTIONS))
    expected = Expectations(jobs=3000)
    async with running_stack(workers=WORKERS) as stack, stack.client() as http:
        await stack.wait_until_registered()
        await run_clients(http, expected, clients=CLIENTS, seed=1)
        result = await check_storm(stack.database, stack.cluster.journal, expected)

        seen = await describe(stack, result)
        assert set(result.attempts) == {1}, seen
        assert not result.counters.get("rescued"), seen
        assert set(expected.status_codes) <= {200, 202, 409, 503}
        assert set(await stack.stop_workers()) == {0}
