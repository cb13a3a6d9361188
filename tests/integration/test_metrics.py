"""The metrics that a process serves on a port of its own."""

from collections.abc import AsyncIterator, Mapping
from uuid import UUID

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from domain.prometheus.server import serving
from domain.services import Services
from domain.settings import Settings
from tests.integration.conftest import RunningWorker
from tests.integration.job_builders import MIB, a_queued_expand, ended
from tests.support.ports import free_port

Samples = Mapping[str, float]


class Scraper:
    """Reads the metrics of one port."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/metrics"

    async def text(self) -> str:
        async with httpx.AsyncClient() as client:
            return (await client.get(self.url)).text

    async def samples(self) -> Samples:
        """Return the values, by name and labels as in the text."""
        families = text_string_to_metric_families(await self.text())
        return {
            sample.name + "".join(f" {label}={value}" for label, value in sorted(sample.labels.items())): sample.value
            for family in families
            for sample in family.samples
        }


@pytest.fixture
async def scraper(services: Services) -> AsyncIterator[Scraper]:
    """Metrics of the test's own process, which is an API and a worker."""
    port = free_port()
    async with serving(("127.0.0.1", port), services):
        yield Scraper(port)


async def test_job_is_counted_from_its_acceptance_to_its_end(
    services: Services, settings: Settings, client: httpx.AsyncClient, running_worker: RunningWorker, scraper: Scraper
) -> None:
    async with running_worker(settings):
        answer = await client.post("/api/v1/volumes", json={"name": "one", "size": MIB})
        job = await ended(services, UUID(answer.json()["id"]))
    samples = await scraper.samples()

    assert job.kind == "volume.create"
    assert samples["cistern_jobs_accepted_total kind=volume.create"] == 1
    assert samples["cistern_jobs_finished_total kind=volume.create outcome=succeeded"] == 1
    assert samples["cistern_job_wait_seconds_count kind=volume.create"] == 1
    assert samples["cistern_job_run_seconds_count kind=volume.create"] == 1
    assert samples["cistern_storage_operations_total operation=create result=ok"] == 1
    assert samples["cistern_storage_operation_seconds_count operation=create"] == 1
    assert samples["cistern_http_requests_total method=POST route=/api/v1/volumes status=202"] == 1
    assert samples["cistern_http_request_seconds_count method=POST route=/api/v1/volumes"] == 1


async def test_scrape_has_the_state_of_the_installation(services: Services, scraper: Scraper) -> None:
    await a_queued_expand(services)
    samples = await scraper.samples()

    assert samples["cistern_queue_depth"] == 1
    assert samples["cistern_workers_alive"] == 0
    assert samples["cistern_jobs_rescued_total"] == 0
    assert samples["cistern_scrape_errors_total"] == 0
