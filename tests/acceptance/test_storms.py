"""Whole stacks under faults and load: every accepted job ends, is recorded once, and no bytes are lost.

``make test`` runs a short storm. ``CISTERN_TEST_LONG=1`` (`make test-long`) runs long ones, and writes a report.
"""

import asyncio
import time
from itertools import count

import pytest

from tests.acceptance.clients import Expectations, run_clients
from tests.acceptance.judge import check_storm
from tests.acceptance.report import Report
from tests.acceptance.scale import LONG, SCALE
from tests.acceptance.stack import WORKERS, Stack, running_stack
from tests.acceptance.storms import SHORT_STORMS, STORMS, run_storm


@pytest.mark.slow
@pytest.mark.parametrize("storm", STORMS if LONG else SHORT_STORMS)
async def test_storm_loses_nothing_and_doubles_nothing(storm: str, report: Report) -> None:
    expected = Expectations(SCALE.jobs, min_faults=SCALE.faults)
    async with running_stack(delay_ms=SCALE.delay_ms) as stack:
        began = time.monotonic()
        async with run_storm(storm, stack, expected, seed=SCALE.seed), stack.client() as http:
            await run_clients(http, expected, clients=SCALE.clients, seed=SCALE.seed)
        result = await check_storm(stack.database, stack.cluster.journal, expected)
        report.add(storm, time.monotonic() - began, expected, result)

        assert expected.faults["crash_postgresql"] or not expected.status_codes[503]
        assert storm != "workers killed" or set(result.attempts) > {1}, "no fault hit a job at work"
        assert set(await stack.stop_workers()) == {0}
        # A worker that is killed right after a pause may leave a draft behind that can no longer be published.
        assert {finding["code"] for finding in await stack.check_and_repair()} <= {"leftover"}


@pytest.mark.slow
async def test_rolling_restart_costs_no_attempt_fails_no_job_and_rejects_no_request(report: Report) -> None:
    expected = Expectations(SCALE.jobs, min_faults=WORKERS)

    async def deploy(stack: Stack) -> None:
        """Replace worker after worker; every second one starts with a drain time of 0 s."""
        for number in count():
            if not expected.needs_more():
                return
            drain = {"CISTERN_DRAIN_SECONDS": str(number % 2)}
            assert await stack.replace(stack.workers[0], **drain) == 0
            expected.faults["replaced"] += 1

    # With the default lease: on a busy machine a worker may be late by more than the short one of the storms.
    async with running_stack(delay_ms=SCALE.delay_ms, lease_seconds=15) as stack, stack.client() as http:
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            group.create_task(deploy(stack))
            group.create_task(run_clients(http, expected, clients=SCALE.clients, seed=SCALE.seed))
        result = await check_storm(stack.database, stack.cluster.journal, expected)
        report.add("rolling restart", time.monotonic() - began, expected, result)

        assert set(result.attempts) == {1}
        assert not expected.status_codes[503]
        assert await stack.check_and_repair() == []
