"""Whole stacks in storms: whatever was accepted ends, is recorded once, and nobody's bytes are lost.

``make test`` has short storms. ``CISTERN_LONG=1`` (`make test-faults`) has long ones, and writes a report.
"""

import asyncio
import time
from itertools import count

import pytest

from tests.acceptance.clients import Expectations, live
from tests.acceptance.judge import compare
from tests.acceptance.report import Report
from tests.acceptance.scale import LONG, SCALE
from tests.acceptance.stack import WORKERS, Stack, standing
from tests.acceptance.storms import SHORT_STORMS, STORMS, raging


@pytest.mark.parametrize("storm", STORMS if LONG else SHORT_STORMS)
async def test_a_storm_loses_nothing_and_doubles_nothing(storm: str, report: Report) -> None:
    expected = Expectations(SCALE.jobs, strikes_wanted=SCALE.strikes)
    async with standing(delay_ms=SCALE.delay_ms) as stack:
        began = time.monotonic()
        async with raging(storm, stack, expected, seed=SCALE.seed), stack.client() as http:
            await live(http, expected, customers=SCALE.customers, seed=SCALE.seed)
        verdict = await compare(stack.database, stack.cluster.journal, expected)
        report.note(storm, time.monotonic() - began, expected, verdict)

        assert expected.strikes["crash_postgresql"] or not expected.answers[503]
        assert storm != "workers killed" or set(verdict.attempts) > {1}, "the blows have hit jobs at work"
        assert set(await stack.send_home()) == {0}
        # A worker that is killed when it has just woken up may leave a draft behind that nobody can publish any more.
        assert {finding["code"] for finding in await stack.inspect()} <= {"leftover"}


async def test_a_rolling_restart_spends_no_attempt_fails_no_job_and_refuses_no_request(report: Report) -> None:
    expected = Expectations(SCALE.jobs, strikes_wanted=WORKERS)

    async def deploy(stack: Stack) -> None:
        """Replace every worker, again and again; every second one gets no time to drain."""
        for number in count():
            if not expected.goes_on():
                return
            drain = {"CISTERN_DRAIN_SECONDS": str(number % 2)}
            assert await stack.replace(stack.fleet[0], **drain) == 0
            expected.strikes["replaced"] += 1

    async with standing(delay_ms=SCALE.delay_ms) as stack, stack.client() as http:
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            group.create_task(deploy(stack))
            group.create_task(live(http, expected, customers=SCALE.customers, seed=SCALE.seed))
        verdict = await compare(stack.database, stack.cluster.journal, expected)
        report.note("rolling restart", time.monotonic() - began, expected, verdict)

        assert set(verdict.attempts) == {1}
        assert not expected.answers[503]
        assert await stack.inspect() == []
