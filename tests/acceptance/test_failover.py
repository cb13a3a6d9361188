"""A standby of PostgreSQL is promoted under load, and nothing is restarted.

With synchronous replication nothing is lost or done twice. With asynchronous replication the new primary has lost some
history, and all volumes can be used again.
"""

import asyncio
import signal

import httpx
import pytest

from tests.acceptance.clients import ENDED, MIB, Expectations, run_clients
from tests.acceptance.judge import check_storm, wait_until_idle
from tests.acceptance.scale import LONG
from tests.acceptance.stack import stack_on
from tests.support.forked import Process
from tests.support.forwarding import forwarder
from tests.support.replication import by_hosts, by_port, replicated_servers

CLIENTS = 40
JOBS = 1000 if LONG else 120
#: Maximum number of seconds from the promotion, or from the change of the address, to the next accepted request.
GAP_SECONDS = 10
#: The same where the primary is frozen: requests in flight are given up after CISTERN_DATABASE_TIMEOUT_SECONDS.
FROZEN_SECONDS = 20


@pytest.mark.slow
@pytest.mark.parametrize("address", ["two hosts", "frozen host", "one address"] if LONG else ["one address"])
async def test_promotion_under_load_loses_nothing_and_doubles_nothing(address: str) -> None:
    expected = Expectations(JOBS, min_faults=1)

    async def accepts_again(seconds: float = GAP_SECONDS) -> None:
        before = len(expected.accepted)
        async with asyncio.timeout(seconds):
            while len(expected.accepted) == before:
                await asyncio.sleep(0.01)

    async def fail_over(http: httpx.AsyncClient) -> None:
        while len(expected.accepted) < JOBS / 3:
            await asyncio.sleep(0.01)
        if address == "two hosts":  # the primary is killed, and comes back as a copy of the new one
            await asyncio.to_thread(primary.stop, signal.SIGQUIT)
            await asyncio.to_thread(standby.promote)
            await accepts_again()
            await asyncio.to_thread(primary.copy, standby)
        elif address == "frozen host":  # as the operator's tools fence it, it is killed before it can come back
            primary.send(signal.SIGSTOP)
            try:
                await asyncio.to_thread(standby.promote)
                await accepts_again(FROZEN_SECONDS)
            finally:
                primary.send(signal.SIGKILL)
        else:  # the primary comes back as a standby, before the address leads elsewhere
            await asyncio.to_thread(primary.stop)
            await asyncio.to_thread(standby.promote)
            await asyncio.to_thread(primary.follow, standby)
            answers = [await http.get("/jobs") for _ in range(20)]
            assert {answer.status_code for answer in answers} == {503}  # a standby is not read from
            load_balancer.leads_to = standby.socket
            await accepts_again()
        expected.faults["promoted"] += 1

    with replicated_servers() as (servers, primary, standby):
        async with forwarder(primary.socket) as load_balancer:
            url = by_hosts(primary, standby) if "host" in address else by_port(load_balancer.port)
            async with stack_on(servers, database_url=url) as stack, stack.client() as http:
                async with asyncio.TaskGroup() as group:
                    group.create_task(fail_over(http))
                    group.create_task(run_clients(http, expected, clients=CLIENTS, seed=1))
                await check_storm(stack.database, stack.cluster.journal, expected)
                assert set(await stack.stop_workers()) == {0}
                assert {finding["code"] for finding in await stack.check_and_repair()} <= {"leftover"}


@pytest.mark.skipif(not LONG, reason="some lost history, which tests/integration/test_fence_behind.py makes by hand")
@pytest.mark.parametrize("repaired_first", [False, True], ids=["workers go on", "repair before workers start"])
async def test_promotion_of_an_asynchronous_standby_leaves_nothing_stuck(*, repaired_first: bool) -> None:
    with replicated_servers(synchronous=False) as (servers, primary, standby):
        url = by_hosts(primary, standby)
        async with stack_on(servers, database_url=url, delay_ms=50) as stack, stack.client() as http:
            requests = ({"name": f"v{number}", "size": MIB} for number in range(30))
            created = await asyncio.gather(*(accepted(http, "/volumes", request) for request in requests))
            volumes, failed_over = [(await ended(http, job))["volume_id"] for job in created], asyncio.Event()
            growing = [asyncio.create_task(grow(http, volume, until=failed_over)) for volume in volumes]
            await asyncio.sleep(2)
            primary.freeze_replication()
            await asyncio.sleep(2)  # how much history is lost
            primary.send(signal.SIGKILL)
            failed_over.set()
            if repaired_first:
                kill(stack.workers)
            await asyncio.to_thread(standby.promote)
            if repaired_first:
                await stack.check_and_repair()  # within a lease of the workers' end
                assert await stack.check_and_repair() == []
                stack.add_worker()
            await asyncio.gather(*growing)
            last = [await accepted(http, f"/volumes/{volume}/expand", {"by": MIB}) for volume in volumes]
            assert {(await ended(http, job))["status"] for job in last} == {"succeeded"}
            await wait_until_idle(stack.database)
            assert set(await stack.stop_workers()) == {0}
            await stack.check_and_repair()
            assert await stack.check_and_repair() == []
            assert ("fence.raised" in stack.log.read_text()) is not repaired_first


def kill(workers: list[Process]) -> None:
    for worker in workers:
        worker.kill()
        worker.wait()
    workers.clear()


async def accepted(http: httpx.AsyncClient, address: str, body: dict[str, object]) -> str:
    """Repeat a request until it is accepted, and return the id of its job."""
    async with asyncio.timeout(90):
        while True:
            response = await http.post(address, json=body)
            if response.status_code == 202:
                return str(response.json()["id"])
            assert response.status_code in (409, 503), response.text
            await asyncio.sleep(0.05)


async def ended(http: httpx.AsyncClient, job_id: str) -> dict[str, str]:
    """Wait for the end of a job, or until it is unknown, for at most 90 s."""
    async with asyncio.timeout(90):
        while True:
            response = await http.get(f"/jobs/{job_id}", headers={"Prefer": "wait=5"})
            job: dict[str, str] = response.json()
            if response.status_code == 404 or job["status"] in ENDED:
                return job
            await asyncio.sleep(0.05)


async def grow(http: httpx.AsyncClient, volume: str, *, until: asyncio.Event) -> None:
    """Expand a volume again and again, whether the jobs are known later or not."""
    while not until.is_set():
        await ended(http, await accepted(http, f"/volumes/{volume}/expand", {"by": MIB}))
