"""``make compose-test``: docker-compose.yaml in real containers, with four workers, one of them killed, one stopped.

Ends with 69 where there is nothing that could run containers. Everything is gone in the end, also after a failure.
"""

import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from tests.acceptance.judge import TRIGGERS
from tests.compose.customer import MIB, Customer
from tests.compose.image import check_image
from tests.compose.stack import Stack, until

WORKERS: Final = 4
VOLUMES: Final = 240


def main(compose: str, engine: str) -> int:
    stack = Stack(compose, engine)
    if obstacle := stack.obstacle():
        say(f"cannot run here: {obstacle}")
        say('needs an engine for containers: make compose-test COMPOSE="docker compose" ENGINE=docker')
        return os.EX_UNAVAILABLE
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    try:
        with Customer(stack.port) as customer:
            story(stack, customer)
    except BaseException:
        stack.say_last_words()
        raise
    finally:
        stack.clear_away()
    say("all well")
    return 0


def story(stack: Stack, customer: Customer) -> None:
    for step in STEPS:
        began = time.monotonic()
        found = step(stack, customer)
        say(f"{step.__name__.replace('_', ' ')}: {found} ({time.monotonic() - began:.0f} s)")


def start(stack: Stack, customer: Customer) -> str:
    stack.up(workers=WORKERS)
    customer.wait_until_ready()
    workers = stack.containers("worker")
    assert len(workers) == WORKERS
    until(lambda: all(stack.is_healthy(one) for one in (*workers, stack.container("api"))), "everybody is healthy")
    return f"the API and {WORKERS} workers are healthy"


def look_at_the_image(stack: Stack, _: Customer) -> str:
    return check_image(stack)


def look_at_the_ports(stack: Stack, _: Customer) -> str:
    """Only the API can be reached from outside, and that only from this machine."""
    for service in ("postgres", "redis", "worker"):
        for container in stack.containers(service):
            assert not any(stack.look("container", container)["NetworkSettings"]["Ports"].values()), service
    published = stack.look("container", stack.container("api"))["NetworkSettings"]["Ports"]
    assert published == {"8000/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(stack.port)}]}
    return "the API's, on loopback, and no other"


def create_volumes(stack: Stack, customer: Customer) -> str:
    wishes = [{"name": f"volume-{number}", "size": MIB} for number in range(VOLUMES)]
    jobs = [customer.post("/volumes", wish).json()["id"] for wish in wishes]
    done = Counter(customer.ended(job)["worker_id"] for job in jobs)
    assert len(done) == WORKERS, done
    for statement in TRIGGERS:
        stack.query(statement)
    return f"{VOLUMES}, by {WORKERS} workers: {sorted(done.values())}"


def expand_them_while_workers_go(stack: Stack, customer: Customer) -> str:
    """One bulk job, shared by all; in the middle of it one worker is killed with -9, and another one told to stop."""
    bulk = customer.post("/volumes/expand", {"by": MIB, "max_concurrent": 8}).json()["id"]
    until(lambda: all(_said(stack, "bulk.chunk")), "every worker has grown some volumes")
    killed = _kill_at_a_lane(stack)
    stopped = next(worker for worker in stack.containers("worker") if worker != killed)
    stack.ask("stop", stopped)
    assert 0 < _grown(customer, bulk) < VOLUMES, "struck too early or too late to be of interest"
    assert stack.look("container", stopped)["State"]["ExitCode"] == os.EX_OK
    progress = customer.ended(bulk)["progress"]
    assert progress["succeeded"] == progress["total"] == VOLUMES
    until(lambda: any(_said(stack, "jobs.rescued")), "the lanes of the killed one were rescued")
    return f"{VOLUMES}, in {_said(stack, 'bulk.chunk')} chunks, and the lanes of the killed one were rescued"


def _said(stack: Stack, event: str) -> list[int]:
    """How often each worker has said something."""
    return [stack.logs(worker).count(f'"event": "{event}"') for worker in stack.containers("worker")]


def _grown(customer: Customer, bulk: str) -> int:
    progress = customer.job(bulk)["progress"]
    return progress["succeeded"] if progress else 0


def _kill_at_a_lane(stack: Stack) -> str:
    """Kill a worker with a lane in its hands. Lanes change hands each second, so it is held still to make sure."""
    caught: list[str] = []

    def catch() -> bool:
        for worker in _at_lanes(stack)[:1]:
            stack.ask("kill", "--signal=STOP", worker)
            if worker in _at_lanes(stack):
                caught.append(worker)
            else:
                stack.ask("kill", "--signal=CONT", worker)
        return bool(caught)

    until(catch, "a worker was caught with a lane in its hands")
    stack.ask("kill", *caught)
    return caught[0]


def _at_lanes(stack: Stack) -> list[str]:
    """Containers of workers that have lanes in their hands."""
    query = (
        "SELECT DISTINCT host FROM workers JOIN jobs ON worker_id = workers.id"
        " WHERE kind = 'bulk.lane' AND status = 'running'"
    )
    hosts = tuple(host for (host,) in stack.query(query))
    return [container for container in stack.containers("worker") if container.startswith(hosts)]


def look_at_the_volumes(stack: Stack, customer: Customer) -> str:
    """Each has grown once, by its row, by what PostgreSQL saw of it, and by the disk."""
    assert set(customer.sizes().values()) == {2 * MIB}
    grown = stack.query("SELECT count(*), count(DISTINCT volume_id), min(was), max(became) FROM seen_sizes")
    assert grown == [[str(VOLUMES), str(VOLUMES), str(MIB), str(2 * MIB)]]
    checked = stack.within(stack.container("api"), "cistern", "check")
    assert checked.returncode == 0, checked.stdout
    return "each grew once; rows, ledger and disk agree"


def run_a_schedule(_: Stack, customer: Customer) -> str:
    """One that is due at night is run now, and grows every volume."""
    wish = {
        "name": "grow-all",
        "cron": "0 3 * * *",
        "time_zone": "Europe/Berlin",
        "action": "bulk.expand",
        "params": {"by": MIB, "max_concurrent": 40},
    }
    schedule = customer.post("/schedules", wish).json()["id"]
    job = customer.ended(customer.post(f"/schedules/{schedule}/run").json()["id"])
    assert job["progress"]["succeeded"] == VOLUMES
    assert set(customer.sizes().values()) == {3 * MIB}
    return f"{VOLUMES} volumes grew once more"


def put_a_worker_to_sleep(stack: Stack, _: Customer) -> str:
    """Its container goes on running; only its health check can tell."""
    awake = [one for one in stack.containers("worker") if stack.look("container", one)["State"]["Running"]]
    sleeper = awake[0]
    stack.ask("kill", "--signal=STOP", sleeper)
    until(lambda: not stack.is_healthy(sleeper), "the sleeper is found out")
    assert all(stack.is_healthy(worker) for worker in awake[1:])
    stack.ask("kill", "--signal=CONT", sleeper)
    until(lambda: stack.is_healthy(sleeper), "it is well again")
    return "it was found unhealthy, and healthy when it was awake again"


def take_it_down_and_up(stack: Stack, customer: Customer) -> str:
    before = customer.sizes()
    stack.down()
    stack.up(workers=WORKERS)
    customer.wait_until_ready()
    assert customer.sizes() == before
    customer.ended(customer.post(f"/volumes/{next(iter(before))}/expand", {"to": 4 * MIB}).json()["id"])
    return f"{len(before)} volumes are still there, and can grow"


STEPS: Final[tuple[Callable[[Stack, Customer], str], ...]] = (
    start,
    look_at_the_image,
    look_at_the_ports,
    create_volumes,
    expand_them_while_workers_go,
    look_at_the_volumes,
    run_a_schedule,
    put_a_worker_to_sleep,
    take_it_down_and_up,
)


def say(line: str) -> None:
    sys.stdout.write(f"compose-test: {line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
