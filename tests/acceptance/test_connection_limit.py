"""More processes than PostgreSQL has connections for: requests get a 503 at worst, and no job loses its lease."""

import pytest

from domain.embedded import servers as server_programs
from tests.acceptance.clients import Expectations, run_clients
from tests.acceptance.judge import check_storm
from tests.acceptance.scale import LONG
from tests.acceptance.stack import running_stack

WORKERS, CLIENTS, CONNECTIONS = (8, 64, 40)


@pytest.mark.skipif(not LONG, reason="eight workers; CISTERN_TEST_LONG=1 runs it")
async def test_too_few_connections_cost_no_lease_and_no_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(server_programs.OPTIONS, "max_connections", str(CONNECTIONS))
    expected = Expectations(jobs=3000)
    async with running_stack(workers=WORKERS) as stack, stack.client() as http:
        await stack.wait_until_registered()
        await run_clients(http, expected, clients=CLIENTS, seed=1)
        result = await check_storm(stack.database, stack.cluster.journal, expected)

        assert set(result.attempts) == {1}
        assert not result.counters.get("rescued")
        assert set(expected.status_codes) <= {200, 202, 409, 503}
        assert set(await stack.stop_workers()) == {0}
