"""A synchronous standby of PostgreSQL is promoted under load: nothing is lost or done twice, nothing is restarted."""

import asyncio
import signal

import psutil
import pytest

from tests.acceptance.clients import Expectations, run_clients
from tests.acceptance.judge import check_storm
from tests.acceptance.scale import LONG
from tests.acceptance.stack import stack_on
from tests.support.forwarding import forwarder
from tests.support.replication import ReplicatedServer, by_hosts, by_port, replicated_servers

CLIENTS = 40
JOBS = 1000 if LONG else 120
#: Maximum number of seconds from the promotion, or from the change of the address, to the next accepted request.
GAP_SECONDS = 10
#: The same where the primary is frozen: requests in flight are given up after CISTERN_DATABASE_TIMEOUT_SECONDS.
FROZEN_SECONDS = 20


@pytest.mark.parametrize("address", ["two hosts", "frozen host", "one address"] if LONG else ["one address"])
async def test_promotion_under_load_loses_nothing_and_doubles_nothing(address: str) -> None:
    expected = Expectations(JOBS, min_faults=1)

    async def accepts_again(seconds: float = GAP_SECONDS) -> None:
        before = len(expected.accepted)
        async with asyncio.timeout(seconds):
            while len(expected.accepted) == before:
                await asyncio.sleep(0.01)

    async def fail_over() -> None:
        while len(expected.accepted) < JOBS / 3:
            await asyncio.sleep(0.01)
        if address == "two hosts":  # the primary is killed, and comes back as a copy of the new one
            await asyncio.to_thread(primary.stop, signal.SIGQUIT)
            await asyncio.to_thread(standby.promote)
            await accepts_again()
            await asyncio.to_thread(primary.copy, standby)
        elif address == "frozen host":  # as the operator's tools fence it, it is killed before it can come back
            send(primary, signal.SIGSTOP)
            try:
                await asyncio.to_thread(standby.promote)
                await accepts_again(FROZEN_SECONDS)
            finally:
                send(primary, signal.SIGKILL)
        else:  # the primary comes back as a standby, before the address leads elsewhere
            await asyncio.to_thread(primary.stop)
            await asyncio.to_thread(standby.promote)
            await asyncio.to_thread(primary.follow, standby)
            await asyncio.sleep(1)
            load_balancer.leads_to = standby.socket
            await accepts_again()
        expected.faults["promoted"] += 1

    def send(server: ReplicatedServer, number: signal.Signals) -> None:
        postmaster = psutil.Process(server.pid)
        for process in (postmaster, *postmaster.children()):
            process.send_signal(number)

    with replicated_servers() as (servers, primary, standby):
        async with forwarder(primary.socket) as load_balancer:
            url = by_hosts(primary, standby) if "host" in address else by_port(load_balancer.port)
            async with stack_on(servers, database_url=url) as stack, stack.client() as http:
                async with asyncio.TaskGroup() as group:
                    group.create_task(fail_over())
                    group.create_task(run_clients(http, expected, clients=CLIENTS, seed=1))
                await check_storm(stack.database, stack.cluster.journal, expected)
                assert set(await stack.stop_workers()) == {0}
                assert {finding["code"] for finding in await stack.check_and_repair()} <= {"leftover"}
