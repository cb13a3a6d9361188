"""A real Prometheus watches a real stack: the alert that no worker is alive fires when the only one is killed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from api.cli.stack import free_port
from domain.services import Services
from domain.volumes.service import NewVolume
from tests.acceptance.cluster import SMALL, Cluster
from tests.support.prometheus import MONITORING, NO_PROMETHEUS, PROMETHEUS

pytestmark = [pytest.mark.slow, pytest.mark.skipif(PROMETHEUS is None, reason=NO_PROMETHEUS)]

WAIT_SECONDS = 60


class Prometheus:
    """Prometheus, by its HTTP API."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def firing(self) -> set[str]:
        """Return the names of the alerts that fire."""
        alerts = (await self._http.get("/api/v1/alerts")).json()["data"]["alerts"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}

    async def value(self, query: str) -> float | None:
        """Return the value of a query, None if it has none."""
        found = (await self._http.get("/api/v1/query", params={"query": query})).json()["data"]["result"]
        return float(found[0]["value"][1]) if found else None

    async def wait_for(self, query: str, value: float) -> None:
        async with asyncio.timeout(WAIT_SECONDS):
            while await self.value(query) != value:
                await asyncio.sleep(0.1)

    async def wait_until(self, alert: str, *, fires: bool) -> None:
        async with asyncio.timeout(WAIT_SECONDS):
            while (alert in await self.firing()) is not fires:
                await asyncio.sleep(0.1)


@asynccontextmanager
async def prometheus(folder: Path, **targets: int) -> AsyncIterator[Prometheus]:
    """Run Prometheus with our rules and jobs, but second by second, for the duration of the block."""
    rules: dict[str, Any] = yaml.safe_load((MONITORING / "rules.yml").read_text())
    config: dict[str, Any] = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    for rule in rules["groups"][0]["rules"]:
        rule["for"] = "1s"
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    for job in config["scrape_configs"]:
        (lookup,) = job.pop("dns_sd_configs")
        job["static_configs"] = [{"targets": [f"127.0.0.1:{targets[name]}" for name in lookup["names"]]}]
    (folder / "rules.yml").write_text(yaml.safe_dump(rules))
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    options = ["--config.file=prometheus.yml", "--storage.tsdb.path=data", f"--web.listen-address=127.0.0.1:{port}"]
    with (folder / "prometheus.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(str(PROMETHEUS), *options, cwd=folder, stdout=log, stderr=log)
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
            await until_ready(http)
            yield Prometheus(http)
    except BaseException:
        print((folder / "prometheus.log").read_text(errors="replace"))  # noqa: T201 (shown if the test fails)
        raise
    finally:
        process.kill()
        await process.wait()


async def until_ready(http: httpx.AsyncClient) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            try:
                if (await http.get("/-/ready")).is_success:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.05)


async def test_alert_fires_when_the_only_worker_is_killed_and_ends_with_the_next(
    cluster: Cluster, services: Services, tmp_path: Path
) -> None:
    ports = {"api": free_port(), "worker": free_port()}
    address = await asyncio.to_thread(cluster.start_api, CISTERN_METRICS=str(ports["api"]))
    worker = cluster.start_worker(CISTERN_METRICS=str(ports["worker"]))
    async with prometheus(tmp_path, **ports) as watching, httpx.AsyncClient(base_url=address) as api:
        await services.volumes.request_create(NewVolume("one", SMALL, backend="local"))
        await watching.wait_for('cistern_jobs_finished_total{job="cistern-worker", outcome="succeeded"}', 1)
        await watching.wait_for("cistern_workers_alive", 1)
        await watching.wait_until("CisternNoWorkerAlive", fires=False)
        assert (await api.get("/readyz")).json()["workers"] == "ok"

        worker.kill()
        worker.wait()
        await watching.wait_until("CisternNoWorkerAlive", fires=True)
        await watching.wait_until("CisternTargetDown", fires=True)
        ready = await api.get("/readyz")
        assert (ready.status_code, ready.json()["workers"]) == (200, "none-alive")

        cluster.start_worker(CISTERN_METRICS=str(ports["worker"]))
        await watching.wait_until("CisternNoWorkerAlive", fires=False)
        await watching.wait_until("CisternTargetDown", fires=False)
