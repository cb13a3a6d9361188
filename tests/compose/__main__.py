"""``make compose-test``: run docker-compose.yaml in real containers, with four workers, of which one is killed.

Exits with 69 if no container engine is available. Removes everything at the end, also after a failure.
"""

import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from tests.acceptance.judge import TRIGGERS
from tests.compose.client import MIB, ApiClient
from tests.compose.image import check_image
from tests.compose.stack import Stack, until

WORKERS: Final = 4
SERVERS: Final = ("postgres", "redis", "api")
VOLUMES: Final = 240


def main(compose: str, engine: str) -> int:
    stack = Stack(compose, engine)
    if obstacle := stack.obstacle():
        log(f"cannot run here: {obstacle}")
        log('a container engine is required: make compose-test COMPOSE="docker compose" ENGINE=docker')
        return os.EX_UNAVAILABLE
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    try:
        with ApiClient(stack.port) as client:
            run_steps(stack, client)
    except BaseException:
        stack.print_logs()
        raise
    finally:
        stack.remove()
    log("all passed")
    return 0


def run_steps(stack: Stack, client: ApiClient) -> None:
    for step in STEPS:
        began = time.monotonic()
        summary = step(stack, client)
        log(f"{step.__name__.replace('_', ' ')}: {summary} ({time.monotonic() - began:.0f} s)")


def start(stack: Stack, client: ApiClient) -> str:
    stack.up(workers=WORKERS)
    client.wait_until_ready()
    workers = stack.containers("worker")
    assert len(workers) == WORKERS
    created = stack.exec(stack.container("api"), "cistern", "keys", "create", "tests", "--role", "system")
    assert created.returncode == 0, created.stderr
    client.use_key(created.stdout.strip())
    until(
        lambda: all(stack.is_healthy(container) for container in (*workers, stack.container("api"))),
        "all containers are healthy",
    )
    return f"the API and {WORKERS} workers are healthy"


def check_the_image(stack: Stack, _: ApiClient) -> str:
    return check_image(stack)


def check_the_ports(stack: Stack, _: ApiClient) -> str:
    """Assert that only the API has a published port, bound to loopback."""
    for service in ("postgres", "redis", "worker"):
        for container in stack.containers(service):
            assert not any(stack.inspect("container", container)["NetworkSettings"]["Ports"].values()), service
    published = stack.inspect("container", stack.container("api"))["NetworkSettings"]["Ports"]
    assert published == {"8000/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(stack.port)}]}
    return "only the API's is published, on loopback"


def check_the_privileges(stack: Stack, _: ApiClient) -> str:
    """Assert that nobody but the owner may change the schema, and nobody without a password use Redis."""
    api, redis = stack.container("api"), stack.container("redis")
    assert stack.query(
        "SELECT count(*) FROM pg_roles WHERE rolname IN ('cistern_api', 'cistern_worker') AND NOT rolsuper"
    ) == [["2"]]
    assert "NOPERM" in stack.exec(redis, "redis-cli", "keys", "*").stdout
    assert stack.exec(api, "touch", "/etc/mine", user="0").returncode != 0, "the root file system is writable"
    capabilities = stack.exec(api, "grep", "CapEff\\|NoNewPrivs", "/proc/self/status").stdout.split()
    assert capabilities == ["CapEff:", "0000000000000000", "NoNewPrivs:", "1"], capabilities
    networks = {
        name: len(stack.inspect("container", stack.container(name))["NetworkSettings"]["Networks"]) for name in SERVERS
    }
    assert networks == {"postgres": 1, "redis": 1, "api": 2}, networks
    return "a role for each part, a user of Redis, no capabilities, nothing writable but data"


def create_volumes(stack: Stack, client: ApiClient) -> str:
    bodies = [{"name": f"volume-{number}", "size": MIB} for number in range(VOLUMES)]
    jobs = [client.post("/volumes", body).json()["id"] for body in bodies]
    job_counts = Counter(client.ended(job)["worker_id"] for job in jobs)
    assert len(job_counts) == WORKERS, job_counts
    for statement in TRIGGERS:
        stack.query(statement)
    return f"{VOLUMES}, by {WORKERS} workers: {sorted(job_counts.values())}"


def expand_volumes_while_workers_die(stack: Stack, client: ApiClient) -> str:
    """Run one bulk job on all workers; in the middle of it, send SIGKILL to one worker and stop another one."""
    bulk = client.post("/volumes/expand", {"by": MIB, "max_concurrent": 8}).json()["id"]
    until(lambda: all(_count_events(stack, "bulk.chunk")), "every worker has expanded some volumes")
    killed = _kill_a_worker_with_a_lane(stack)
    stopped = next(worker for worker in stack.containers("worker") if worker != killed)
    stack.engine_run("stop", stopped)
    assert 0 < _succeeded(client, bulk) < VOLUMES, "the faults did not hit the bulk job at work"
    assert stack.inspect("container", stopped)["State"]["ExitCode"] == os.EX_OK
    progress = client.ended(bulk)["progress"]
    assert progress["succeeded"] == progress["total"] == VOLUMES
    until(lambda: any(_count_events(stack, "jobs.rescued")), "the lanes of the killed worker were rescued")
    return f"{VOLUMES}, in {_count_events(stack, 'bulk.chunk')} chunks, and the killed worker's lanes were rescued"


def _count_events(stack: Stack, event: str) -> list[int]:
    """Return, for each worker, the number of log lines with this event."""
    return [stack.logs(worker).count(f'"event": "{event}"') for worker in stack.containers("worker")]


def _succeeded(client: ApiClient, bulk: str) -> int:
    progress = client.job(bulk)["progress"]
    return progress["succeeded"] if progress else 0


def _kill_a_worker_with_a_lane(stack: Stack) -> str:
    """Kill a worker while it holds a lane. Lanes move each second, so pause it first and check again."""
    paused: list[str] = []

    def pause_one() -> bool:
        for worker in _workers_with_lanes(stack)[:1]:
            stack.engine_run("kill", "--signal=STOP", worker)
            if worker in _workers_with_lanes(stack):
                paused.append(worker)
            else:
                stack.engine_run("kill", "--signal=CONT", worker)
        return bool(paused)

    until(pause_one, "a worker was paused while it held a lane")
    stack.engine_run("kill", *paused)
    return paused[0]


def _workers_with_lanes(stack: Stack) -> list[str]:
    """Return the containers of the workers that hold lanes."""
    query = (
        "SELECT DISTINCT host FROM workers JOIN jobs ON worker_id = workers.id"
        " WHERE kind = 'bulk.lane' AND status = 'running'"
    )
    hosts = tuple(host for (host,) in stack.query(query))
    return [container for container in stack.containers("worker") if container.startswith(hosts)]


def check_the_volumes(stack: Stack, client: ApiClient) -> str:
    """Assert that each volume grew once: by its row, by the trigger's record, and on the disk."""
    assert set(client.sizes().values()) == {2 * MIB}
    grown = stack.query("SELECT count(*), count(DISTINCT volume_id), min(previous), max(current) FROM size_changes")
    assert grown == [[str(VOLUMES), str(VOLUMES), str(MIB), str(2 * MIB)]]
    checked = stack.exec(stack.container("api"), "cistern", "check")
    assert checked.returncode == 0, checked.stdout
    return "each grew once; rows, ledger and disk agree"


def run_a_schedule(_: Stack, client: ApiClient) -> str:
    """Run a nightly schedule now, and assert that it expands every volume."""
    body = {
        "name": "grow-all",
        "cron": "0 3 * * *",
        "time_zone": "Europe/Berlin",
        "action": "bulk.expand",
        "params": {"by": MIB, "max_concurrent": 40},
    }
    schedule = client.post("/schedules", body).json()["id"]
    job = client.ended(client.post(f"/schedules/{schedule}/run").json()["id"])
    assert job["progress"]["succeeded"] == VOLUMES
    assert set(client.sizes().values()) == {3 * MIB}
    return f"{VOLUMES} volumes grew once more"


def signal_worker(stack: Stack, container: str, name: str) -> None:
    """Send a signal to the worker in a container. The container's first process is an init, which cannot forward it."""
    program = (
        "import os, signal, pathlib\n"
        "for one in pathlib.Path('/proc').glob('[0-9]*'):\n"
        "    if int(one.name) not in (1, os.getpid()) and b'cistern' in (one / 'cmdline').read_bytes():\n"
        f"        os.kill(int(one.name), signal.{name})\n"
    )
    stack.engine_run("exec", container, "python", "-c", program)


def pause_a_worker(stack: Stack, _: ApiClient) -> str:
    """Pause a worker; its container keeps running, so only the health check can detect it."""
    running = [one for one in stack.containers("worker") if stack.inspect("container", one)["State"]["Running"]]
    sleeper = running[0]
    signal_worker(stack, sleeper, "SIGSTOP")
    until(lambda: not stack.is_healthy(sleeper), "the paused worker is unhealthy")
    assert all(stack.is_healthy(worker) for worker in running[1:])
    signal_worker(stack, sleeper, "SIGCONT")
    until(lambda: stack.is_healthy(sleeper), "the resumed worker is healthy")
    return "unhealthy while paused, healthy after it was resumed"


def restart_the_stack(stack: Stack, client: ApiClient) -> str:
    before = client.sizes()
    stack.down()
    stack.up(workers=WORKERS)
    client.wait_until_ready()
    assert client.sizes() == before
    client.ended(client.post(f"/volumes/{next(iter(before))}/expand", {"to": 4 * MIB}).json()["id"])
    return f"{len(before)} volumes survived, and can grow"


STEPS: Final[tuple[Callable[[Stack, ApiClient], str], ...]] = (
    start,
    check_the_image,
    check_the_ports,
    check_the_privileges,
    create_volumes,
    expand_volumes_while_workers_die,
    check_the_volumes,
    run_a_schedule,
    pause_a_worker,
    restart_the_stack,
)


def log(line: str) -> None:
    sys.stdout.write(f"compose-test: {line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
