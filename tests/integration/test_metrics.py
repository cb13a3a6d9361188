"""The metrics that a process serves on a port of its own."""

import asyncio
import re
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from uuid import UUID

import httpx
import pytest
import structlog
from sqlalchemy import text

from api.cli.stack import free_port
from domain import metrics
from domain.bulk.expand import BulkExpandRequest, GrowthPolicy
from domain.errors import ConfigurationError, QuotaExceeded
from domain.prometheus import server as server_module
from domain.prometheus.server import serving
from domain.services import Services, open_services
from domain.settings import Settings
from domain.volumes.model import Growth
from domain.volumes.service import NewVolume
from tests.conftest import LogAtDebug
from tests.integration.bulk_builders import fail_for
from tests.integration.conftest import RunningWorker
from tests.integration.job_builders import MIB, a_queued_expand, a_volume, ended, sql, until
from tests.integration.project_builders import a_project
from tests.support.bulk import add_volumes
from tests.support.bulk import ended as bulk_ended
from tests.support.prometheus import NO_PROMETHEUS, PROMTOOL, promtool
from tests.support.scraping import samples, scrape

ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}")


@pytest.fixture
async def port(services: Services) -> AsyncIterator[int]:
    """The port of the metrics of the test's own process, which is an API and a worker."""
    port = free_port()
    async with serving(("127.0.0.1", port), services):
        yield port


async def test_job_is_counted_from_its_acceptance_to_its_end(
    services: Services, settings: Settings, client: httpx.AsyncClient, running_worker: RunningWorker, port: int
) -> None:
    async with running_worker(settings):
        answer = await client.post("/api/v1/volumes", json={"name": "one", "size": MIB})
        await ended(services, UUID(answer.json()["id"]))
        await until(lambda: is_counted(port, "cistern_job_run_seconds_count kind=volume.create"))
    found = await samples(port)

    assert found["cistern_jobs_accepted_total kind=volume.create"] == 1
    assert found["cistern_jobs_finished_total kind=volume.create outcome=succeeded"] == 1
    assert found["cistern_job_wait_seconds_count kind=volume.create"] == 1
    assert 0 < found["cistern_job_wait_seconds_sum kind=volume.create"] < 60
    assert found["cistern_storage_operations_total operation=create result=ok"] == 1
    assert found["cistern_storage_operation_seconds_count operation=create"] == 1


async def is_counted(port: int, name: str, at_least: float = 1) -> bool:
    return (await samples(port)).get(name, 0) >= at_least


async def test_requests_are_counted_by_the_row_of_their_route(client: httpx.AsyncClient, port: int) -> None:
    await client.post("/api/v1/volumes", json={"name": "one", "size": MIB})
    for path in (f"/api/v1/volumes/{UUID(int=1)}", f"/api/v1/volumes/{UUID(int=2)}", "/made/up", "/healthz"):
        await client.get(path)
    await client.head("/healthz")
    await client.request("BREW", "/healthz")
    found = await samples(port)
    counts = {name.partition("_total ")[2]: found[name] for name in found if name.startswith("cistern_http_requests_t")}

    assert counts == {
        "method=POST route=/api/v1/volumes status=202": 1,
        "method=GET route=/api/v1/volumes/{} status=404": 2,
        "method=GET route=other status=404": 1,
        "method=GET route=/healthz status=200": 1,
        "method=HEAD route=/healthz status=200": 1,
        "method=other route=/healthz status=405": 1,
    }
    assert found["cistern_http_request_seconds_count method=GET route=/api/v1/volumes/{}"] == 2


async def test_job_that_is_cancelled_before_its_start_is_counted_where_it_ends(services: Services, port: int) -> None:
    job = await a_queued_expand(services)
    await services.jobs.cancel(job.id)
    found = await samples(port)

    assert found["cistern_jobs_accepted_total kind=volume.expand"] == 1
    assert found["cistern_jobs_finished_total kind=volume.expand outcome=cancelled"] == 1


async def test_items_of_a_bulk_job_are_counted_by_outcome_and_code(
    bulk_settings: Settings, running_worker: RunningWorker, tmp_path: Path
) -> None:
    port = free_port()
    async with open_services(bulk_settings, adopt=True) as services, services.watcher.watching():
        volumes = await add_volumes(services, 10, backend="null")
        await sql(services, "UPDATE volumes SET state = 'error' WHERE id = :id", id=volumes[0])
        fail_for(tmp_path, "expand", volumes[1:3])
        async with serving(("127.0.0.1", port), services), running_worker(bulk_settings):
            job = await services.bulk.request(BulkExpandRequest(GrowthPolicy(by=MIB), max_concurrent=5))
            await bulk_ended(services, job)
            await until(lambda: is_counted(port, "cistern_jobs_finished_total kind=bulk.expand outcome=partial"))
            found = await samples(port)

    assert found["cistern_bulk_items_total code=expanded outcome=succeeded"] == 7
    assert found["cistern_bulk_items_total code=storage-full outcome=failed"] == 2
    assert found["cistern_bulk_items_total code=volume-unusable outcome=skipped"] == 1
    assert found["cistern_storage_operations_total operation=expand result=ok"] == 7
    assert found["cistern_storage_operations_total operation=expand result=permanent-error"] == 2


async def test_items_that_a_cancelled_job_leaves_are_counted_with_their_code(
    bulk_settings: Settings, running_worker: RunningWorker, tmp_path: Path
) -> None:
    own = bulk_settings.model_copy(update={"metrics": ("127.0.0.1", free_port())})
    port = own.metrics[1] if own.metrics else 0
    (tmp_path / "gate").touch()
    async with open_services(bulk_settings, adopt=True) as services, services.watcher.watching():
        await add_volumes(services, 30, backend="null")
        async with running_worker(own):
            job = await services.bulk.request(BulkExpandRequest(GrowthPolicy(by=MIB), max_concurrent=1))
            await until(lambda: is_counted(port, "cistern_lanes_running"))
            await services.jobs.cancel(job.id)
            (tmp_path / "gate").unlink()
            await bulk_ended(services, job)
            await until(lambda: is_counted(port, "cistern_jobs_finished_total kind=bulk.expand outcome=cancelled"))
            found = await samples(port)

    items = {name: found[name] for name in found if name.startswith("cistern_bulk_items_total")}
    assert sum(items.values()) == 30
    assert items["cistern_bulk_items_total code=cancelled outcome=skipped"] > 0
    assert "cistern_queue_depth" not in found  # of the installation: the API has it


async def test_refusals_by_limits_are_counted(services: Services, port: int) -> None:
    project = await a_project(services, "one", max_bytes=MIB)
    before = (await samples(port))["cistern_quota_refusals_total quota=max_bytes"]
    with pytest.raises(QuotaExceeded):
        await services.volumes.request_create(NewVolume("v", 2 * MIB), origin=project.origin)
    found = await samples(port)

    assert (before, found["cistern_quota_refusals_total quota=max_bytes"]) == (0, 1)
    assert found["cistern_quota_refusals_total quota=max_volumes"] == 0


async def test_scrape_has_the_state_of_the_installation(
    services: Services, settings: Settings, running_worker: RunningWorker, port: int
) -> None:
    await sql(services, "INSERT INTO counters VALUES ('rescued', 2), ('retried', 3), ('lost_messages', 4)")
    async with running_worker(settings):
        await until(lambda: is_counted(port, "cistern_workers_alive"))
        found = await samples(port)
    await a_queued_expand(services)
    await sql(services, "UPDATE jobs SET run_at = now() - interval '5 minutes'")
    await sql(services, "UPDATE backends SET total = 100, used = 40, promised = 70")
    await services.directory.refresh()
    services.stats._cached_at = 0.0
    waiting = await samples(port)

    assert (found["cistern_queue_depth"], found["cistern_queue_oldest_seconds"]) == (0, 0)
    assert waiting["cistern_queue_depth"] == 1
    assert 300 <= waiting["cistern_queue_oldest_seconds"] < 360
    assert waiting["cistern_workers_alive"] == 0
    counters = ("jobs_rescued", "jobs_retried", "messages_lost", "scrape_errors")
    assert [found[f"cistern_{name}_total"] for name in counters] == [2, 3, 4, 0]
    assert [waiting[f"cistern_backend_{name}_bytes backend=memory"] for name in ("size", "used", "promised")] == [
        *(100, 40, 70)
    ]


async def test_scrape_has_nodes_and_attachments_by_their_state(services: Services, port: int) -> None:
    volume = await a_volume(services)
    workers = "INSERT INTO workers (id, host, pid, node, heartbeat_at) VALUES (gen_random_uuid(), 'h', 1, :node, now()"
    await sql(services, f"{workers})", node="web-1")
    await sql(services, f"{workers})", node="web-1")  # one that is about to end, and its successor
    await sql(services, f"{workers} - interval '10 minutes')", node="web-2")
    columns = "id, project_id, volume_id, node, holder, mode, state, generation"
    for node, state in (("web-1", "attached"), ("web-1", "attaching"), ("web-2", "attached"), ("web-3", "detaching")):
        values = "gen_random_uuid(), :project, :volume, :node, :holder, 'rw', :state, 1"
        row = {"project": volume.project_id, "volume": volume.id, "node": node, "holder": state, "state": state}
        await sql(services, f"INSERT INTO attachments ({columns}) VALUES ({values})", **row)
    found = await samples(port)

    assert (found["cistern_nodes_alive"], found["cistern_attachments_unattended"]) == (1, 2)
    states = ("attached", "attaching", "detaching")
    assert [found[f"cistern_attachments state={state}"] for state in states] == [2, 1, 1]
    assert found["cistern_workers_alive"] == 0


async def test_freezes_and_failed_growths_are_counted_from_zero(port: int) -> None:
    before = await samples(port)
    metrics.current().freeze_ended("held")
    metrics.current().growth_failed()
    found = await samples(port)

    names = ("freezes_total result=held", "freezes_total result=lost", "filesystem_growth_failures_total")
    assert [before[f"cistern_{name}"] for name in names] == [0, 0, 0]
    assert [found[f"cistern_{name}"] for name in names] == [1, 0, 1]


async def test_scrape_without_the_database_has_what_the_process_has_counted(services: Services, port: int) -> None:
    await a_queued_expand(services)
    async with services.database.transaction() as session:
        await session.execute(text("LOCK TABLE counters"))
        scraping = asyncio.create_task(samples(port))
        found = await scraping
    again = await samples(port)

    assert found["cistern_jobs_accepted_total kind=volume.expand"] == 1
    assert (found["cistern_scrape_errors_total"], again["cistern_scrape_errors_total"]) == (1, 2)  # cached for a second
    assert "cistern_queue_depth" not in found
    services.stats._cached_at = 0.0
    assert (await samples(port))["cistern_queue_depth"] == 1


async def test_unexpected_error_of_a_scrape_is_counted(
    services: Services, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def crash() -> int:
        raise ValueError("a bug")

    monkeypatch.setattr(services.workers, "count_alive", crash)

    assert (await samples(port))["cistern_scrape_errors_total"] == 1


async def test_no_id_is_a_label(
    services: Services, settings: Settings, client: httpx.AsyncClient, running_worker: RunningWorker, port: int
) -> None:
    async with running_worker(settings):
        volume = await a_volume(services)
        job = await services.volumes.request_expand(volume.id, Growth(by=MIB))
        await ended(services, job.id)
        for path in (f"jobs/{job.id}", f"volumes/{volume.id}", f"jobs/{job.id}/items", f"volumes/{volume.id}/nothing"):
            await client.get(f"/api/v1/{path}")
        await client.get(f"/{job.id}")

        assert ID.findall(await scrape(port)) == []


@pytest.mark.skipif(PROMTOOL is None, reason=NO_PROMETHEUS)
async def test_promtool_finds_nothing_wrong_with_the_metrics(
    services: Services, settings: Settings, client: httpx.AsyncClient, running_worker: RunningWorker, port: int
) -> None:
    async with running_worker(settings):
        await client.post("/api/v1/volumes", json={"name": "one", "size": MIB})
        await until(lambda: is_counted(port, "cistern_job_run_seconds_count kind=volume.create"))
        text = await scrape(port)
    checked = promtool("check", "metrics", text=text)

    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


async def test_port_that_is_in_use_is_reported_in_one_line(services: Services, port: int) -> None:
    with pytest.raises(ConfigurationError, match=f"CISTERN_METRICS: cannot listen on port {port} of 127.0.0.1: "):
        async with serving(("127.0.0.1", port), services):
            pass


async def test_nothing_is_recorded_or_served_after_the_end(services: Services) -> None:
    port = free_port()
    async with serving(("127.0.0.1", port), services):
        assert metrics.current().is_on
    with suppress(httpx.ConnectError):
        await scrape(port)
        raise AssertionError

    assert metrics.current() is metrics.NOTHING


async def test_connection_that_is_reset_is_logged_and_not_printed(
    port: int, capfd: pytest.CaptureFixture[str], log_at_debug: LogAtDebug
) -> None:
    log_at_debug(server_module)
    with structlog.testing.capture_logs() as logs, socket.create_connection(("127.0.0.1", port)) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.send(b"GET /metrics")
        client.close()
        async with asyncio.timeout(30):
            while not logs:
                await asyncio.sleep(0.02)

    assert [entry["event"] for entry in logs] == ["metrics.connection_failed"]
    assert "Traceback" not in capfd.readouterr().err


async def test_client_that_sends_no_request_is_given_up(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "_TIMEOUT_SECONDS", 0.2)
    port = free_port()
    async with serving(("127.0.0.1", port), services):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            async with asyncio.timeout(30):
                assert await reader.read() == b""
        finally:
            writer.close()
