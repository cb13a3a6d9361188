"""The features of the sample that Cistern grew from: one test per feature, and one for each of its four claims."""

import ast
import asyncio
import inspect
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, get_type_hints
from uuid import UUID

import httpx
import pytest
import structlog
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

import api.schemas.pagination
from api.dependencies import _services
from domain.bulk import chunks as chunks_module
from domain.bulk.expand import BulkExpandRequest, GrowthPolicy
from domain.db.base import DEFAULT_PROJECT
from domain.db.database import Database
from domain.db.pagination import PageRequest
from domain.jobs.acceptance import ANONYMOUS
from domain.jobs.model import Job
from domain.services import Services, open_services
from domain.settings import Settings
from domain.volumes.model import Growth
from domain.volumes.repository import VolumeFilter, VolumeRepository
from domain.volumes.service import NewVolume, VolumeService
from tests.acceptance import journal
from tests.conftest import LogAtDebug
from tests.integration.conftest import RunningWorker
from tests.support.bulk import MIB, add_volumes, ended, most_at_once
from tests.support.http import client_of
from tests.unit.fakes import FakeServices, volume_row
from worker.main import worker_handlers

ROOT = Path(__file__).parents[2]
BY_ONE = GrowthPolicy(by=MIB)
WAIT = {"Prefer": "wait=30"}


@pytest.fixture
def seed_settings(settings: Settings, tmp_path: Path) -> Settings:
    options = f"journal={tmp_path / 'journal'}&fail=@{tmp_path / 'faults'}&gate={tmp_path / 'gate'}"
    return settings.model_copy(update={"backends": {"null": f"faulty+null:?{options}"}, "max_jobs": 20})


@pytest.fixture
async def services(seed_settings: Settings) -> AsyncIterator[Services]:
    async with open_services(seed_settings, adopt=True) as services, services.watcher.watching():
        yield services


async def expand_all(services: Services, **options: Any) -> Job:
    return await ended(services, await services.bulk.request(BulkExpandRequest(BY_ONE, **options)))


# --- routes, services, repositories and ORM are separated; one service serves several endpoints ---------------


def test_layers_are_separated_by_import_contracts() -> None:
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"
    lint = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)

    assert lint.returncode == 0, lint.stdout
    assert "The API calls services, never SQL, arq or storage KEPT" in lint.stdout


async def test_one_set_of_services_serves_v0_v1_and_the_worker(
    services: Services, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[VolumeService] = []
    original = VolumeService.request_create

    async def recorded(self: VolumeService, new: NewVolume, *, origin: Any = ANONYMOUS) -> Job:
        called.append(self)
        return await original(self, new, origin=origin)

    monkeypatch.setattr(VolumeService, "request_create", recorded)
    monkeypatch.setattr("api.v0.wait.MAX_WAIT_SECONDS", 0)
    for version in ("v0", "v1"):
        response = await client.post(f"/api/{version}/volumes", json={"name": version, "size": 1})
        assert response.status_code == 202

    performs = worker_handlers(services, lambda: 1)["volume.create"]
    assert called == [services.volumes] * 2
    assert performs is services.handlers["volume.create"]


# --- VolumeActionsService.create, expand_volumes, list_volumes ------------------------------------------------


async def test_services_create_expand_and_list_volumes(
    services: Services, seed_settings: Settings, running_worker: RunningWorker
) -> None:
    async with running_worker(seed_settings):
        creation = await ended(services, await services.volumes.request_create(NewVolume("one", MIB)))
        expansion = await expand_all(services)

    (volume,) = (
        await services.volumes.list_volumes(VolumeFilter(), PageRequest("volumes"), project_id=DEFAULT_PROJECT)
    ).items
    assert (creation.status, expansion.status) == ("succeeded", "succeeded")
    assert (volume.name, volume.state, volume.size) == ("one", "available", 2 * MIB)


# --- VolumeRepository(session), named queries in one place; sessions that commit or roll back -----------------


def statements(path: Path) -> set[str]:
    names = {"select", "update", "delete", "insert"}
    nodes = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
    return {node.func.id for node in nodes if isinstance(node.func, ast.Name)} & names


def test_queries_for_volumes_and_snapshots_are_in_their_repositories() -> None:
    for package in ("volumes", "snapshots"):
        querying = {path.name for path in (ROOT / "domain" / package).glob("*.py") if statements(path)}
        assert querying == {"repository.py"}, package


async def test_session_commits_on_exit_and_rolls_back_on_an_exception(services: Services) -> None:
    committed, rolled_back = (volume_row(name, backend="null") for name in ("committed", "rolled-back"))
    async with services.database.transaction() as session:
        await VolumeRepository(session).add(committed)

    async def fail() -> None:
        async with services.database.transaction() as session:
            await VolumeRepository(session).add(rolled_back)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    async with services.database.transaction() as session:
        found = await VolumeRepository(session).page(VolumeFilter(), DEFAULT_PROJECT, before=None, limit=5)
    assert [volume.name for volume in found] == ["committed"]


# --- size: current_size + 123, computed from a stale read -----------------------------------------------------


async def test_growth_is_not_lost_to_a_stale_read(
    services: Services, seed_settings: Settings, running_worker: RunningWorker
) -> None:
    (volume_id,) = await add_volumes(services, 1, backend="null")
    async with running_worker(seed_settings):
        jobs = [await services.bulk.request(BulkExpandRequest(BY_ONE)) for _ in range(3)]
        items = [
            await services.bulk.items(
                (await ended(services, job)).id, None, after=None, limit=1, project_id=DEFAULT_PROJECT
            )
            for job in jobs
        ]

    assert (await services.volumes.get(volume_id, project_id=DEFAULT_PROJECT)).size == 4 * MIB
    assert sorted(item.to_size or 0 for (item,) in items) == [2 * MIB, 3 * MIB, 4 * MIB], "recorded under the lock"


# --- TaskGroup and Semaphore: the four claims -----------------------------------------------------------------


async def wait_until_expanding(tmp_path: Path, count: int) -> None:
    """Wait until ``count`` volumes are being expanded; the gate keeps them from ending."""
    async with asyncio.timeout(30):
        while most_at_once(journal.read(tmp_path / "journal")) < count:
            await asyncio.sleep(0.02)


async def test_claim_1_volumes_are_expanded_concurrently(
    services: Services, seed_settings: Settings, running_worker: RunningWorker, tmp_path: Path
) -> None:
    await add_volumes(services, 40, backend="null")
    (tmp_path / "gate").touch()
    async with running_worker(seed_settings):
        job = await services.bulk.request(BulkExpandRequest(BY_ONE))
        await wait_until_expanding(tmp_path, 10)  # the seed's default
        (tmp_path / "gate").unlink()
        job = await ended(services, job)

    assert (job.status, job.succeeded, job.params["max_concurrent"]) == ("succeeded", 40, 10)
    assert most_at_once(journal.read(tmp_path / "journal")) == 10


async def test_claim_2_at_most_max_concurrent_volumes_at_once(
    services: Services, seed_settings: Settings, running_worker: RunningWorker, tmp_path: Path
) -> None:
    await add_volumes(services, 40, backend="null")
    (tmp_path / "gate").touch()
    async with running_worker(seed_settings), running_worker(seed_settings):
        job = await services.bulk.request(BulkExpandRequest(BY_ONE, max_concurrent=3))
        await wait_until_expanding(tmp_path, 3)
        await asyncio.sleep(0.5)  # a fourth would have begun by now
        (tmp_path / "gate").unlink()
        assert (await ended(services, job)).succeeded == 40

    assert most_at_once(journal.read(tmp_path / "journal")) == 3


class RecordingSessions:
    """A session factory that records the task in which each session is opened."""

    def __init__(self, database: Database) -> None:
        self._open = database._sessions
        self.opened: list[tuple[asyncio.Task[Any] | None, AsyncSession]] = []

    def __call__(self, **options: Any) -> AsyncSession:
        session = self._open(**options)
        self.opened.append((asyncio.current_task(), session))
        return session


async def test_claim_3_each_task_has_its_own_session(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """Covers the sample's ScopedSession, too: 200 tasks, 200 sessions, none shared."""
    volumes = await add_volumes(services, 200, backend="memory")
    sessions = RecordingSessions(services.database)
    monkeypatch.setattr(services.database, "_sessions", sessions)
    slots = asyncio.Semaphore(20)  # not above the number of connections: waiting for one times out on a busy machine

    async def request(volume_id: UUID) -> None:
        async with slots:
            await services.volumes.request_delete(volume_id)

    async with asyncio.TaskGroup() as group:
        tasks = {group.create_task(request(volume_id)) for volume_id in volumes}

    assert len(tasks) == len(sessions.opened) == 200
    assert {task for task, _ in sessions.opened} == tasks
    assert len({id(session) for _, session in sessions.opened}) == 200


async def test_claim_4_one_failure_does_not_block_the_others(
    services: Services, seed_settings: Settings, running_worker: RunningWorker, tmp_path: Path
) -> None:
    volumes = await add_volumes(services, 40, backend="null")
    (tmp_path / "faults").write_text(f"expand:storage-full {volumes[0]}\n")
    async with running_worker(seed_settings):
        job = await expand_all(services, max_concurrent=40)

    assert (job.status, job.succeeded, job.failed) == ("partial", 39, 1)


# --- POST /api/v1/volumes/expand, max_concurrent in the request, logs, live progress --------------------------


async def test_route_accepts_max_concurrent_and_logs_have_each_volume(
    services: Services,
    client: httpx.AsyncClient,
    seed_settings: Settings,
    running_worker: RunningWorker,
    log_at_debug: LogAtDebug,
) -> None:
    log_at_debug(chunks_module)  # disabled levels are not captured either
    volumes = await add_volumes(services, 12, backend="null")
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as logs:
        async with running_worker(seed_settings):
            response = await client.post("/api/v1/volumes/expand", json={"by": 1, "max_concurrent": 4}, headers=WAIT)

    counts = {"unit": "volumes", "total": 12, "succeeded": 12, "failed": 0, "skipped": 0}
    assert response.json()["progress"].items() >= counts.items()
    events = Counter(entry["event"] for entry in logs)
    (accepted,) = [entry for entry in logs if entry["event"] == "job.accepted"]
    assert (accepted["max_concurrent"], accepted["job_id"]) == (4, response.json()["id"])
    chunks = [entry for entry in logs if entry["event"] == "bulk.chunk"]
    assert sum(entry["volumes"] for entry in chunks) == 12
    assert {entry["log_level"] for entry in chunks} == {"info"}
    finished = [entry for entry in logs if entry["event"] == "volume.expanded"]
    assert {UUID(entry["volume_id"]) for entry in finished} == set(volumes)
    assert {entry["log_level"] for entry in finished} == {"debug"}
    assert events["job.started"] >= 1
    assert events["bulk.ended"] == 1


# --- API v0 and v1; volumes and snapshots routers; paginated_response -----------------------------------------


@pytest.mark.parametrize("version", ["v0", "v1"])
@pytest.mark.parametrize("resource", ["volumes", "snapshots"])
async def test_both_versions_list_volumes_and_snapshots_in_pages(
    services: Services, client: httpx.AsyncClient, version: str, resource: str
) -> None:
    (volume_id,) = await add_volumes(services, 1, backend="null")
    async with services.database.transaction() as session:
        await session.execute(
            text(
                "INSERT INTO snapshots (id, volume_id, name, state, size, version)"
                " SELECT gen_random_uuid(), id, 's', 'ready', 1, 1 FROM volumes"
            )
        )
    page = (await client.get(f"/api/{version}/{resource}?limit=1")).json()

    assert page.keys() == {"items", "next_cursor"} == api.schemas.pagination.Paginated.model_fields.keys()
    assert [item.get("volume_id") or item["id"] for item in page["items"]] == [str(volume_id)]
    assert inspect.getsource(sys.modules[f"api.{version}.{resource}"]).count("return paginated_response(") >= 1


# --- Depends injects services into routes ---------------------------------------------------------------------


async def test_depends_injects_services_and_can_be_overridden(app: FastAPI) -> None:
    fake = FakeServices()
    fake.volumes.add(volume_row("from-the-fake"))
    app.dependency_overrides[_services] = lambda: fake
    async with client_of(app) as client:
        items = (await client.get("/api/v1/volumes")).json()["items"]

    assert [item["name"] for item in items] == ["from-the-fake"]


def handlers() -> Iterator[Any]:
    for name in (
        "api.v0.volumes",
        "api.v0.snapshots",
        "api.v1.volumes",
        "api.v1.snapshots",
        "api.v1.bulk",
        "api.v1.jobs",
    ):
        for route in sys.modules[name].router.routes:
            yield route.endpoint


def test_no_route_depends_on_a_session_or_repository() -> None:
    for handler in handlers():
        types = {hint.__name__ for hint in get_type_hints(handler).values() if isinstance(hint, type)}
        assert not {name for name in types if "Session" in name or "Repository" in name}, handler


# --- PostgreSQL by docker-compose; full type hints; async first -----------------------------------------------


def test_postgresql_is_in_the_compose_file() -> None:
    assert "image: postgres:" in (ROOT / "docker-compose.yaml").read_text()


def test_types_are_checked_strictly() -> None:
    mypy = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]

    assert mypy["strict"]
    assert {"api", "worker", "domain"} <= set(mypy["files"])


def test_every_route_is_async() -> None:
    kinds = (inspect.iscoroutinefunction, inspect.isasyncgenfunction)  # the latter streams events
    assert all(any(is_kind(handler) for is_kind in kinds) for handler in handlers())


# --- planned in the sample: error handling and logging, caching, pagination, migrations, tests, OpenAPI -------


async def test_error_is_a_problem_with_the_request_id(client: httpx.AsyncClient) -> None:
    response = await client.get(f"/api/v1/volumes/{UUID(int=7)}", headers={"X-Request-ID": "find-me"})

    assert response.headers["content-type"] == "application/problem+json"
    assert (response.json()["code"], response.json()["request_id"]) == ("volume-not-found", "find-me")


@pytest.mark.parametrize("kind", ["volumes", "jobs"])
async def test_unchanged_resource_is_304_until_it_changes(
    services: Services, client: httpx.AsyncClient, kind: str
) -> None:
    (volume_id,) = await add_volumes(services, 1, backend="null")
    job = await services.volumes.request_expand(volume_id, Growth(by=1))
    path = f"/api/v1/{kind}/{volume_id if kind == 'volumes' else job.id}"
    if_none_match = {"If-None-Match": (await client.get(path)).headers["etag"]}

    assert (await client.get(path, headers=if_none_match)).status_code == 304
    await services.jobs.cancel(job.id)
    assert (await client.get(path, headers=if_none_match)).status_code == 200


async def test_relabelled_volume_is_200(services: Services, client: httpx.AsyncClient) -> None:
    (volume_id,) = await add_volumes(services, 1, backend="null")
    path = f"/api/v1/volumes/{volume_id}"
    if_none_match = {"If-None-Match": (await client.get(path)).headers["etag"]}
    await client.patch(path, json={"labels": {"a": "b"}})

    assert (await client.get(path, headers=if_none_match)).status_code == 200


async def test_pages_are_consecutive(services: Services, client: httpx.AsyncClient) -> None:
    await add_volumes(services, 5, backend="null")
    first = (await client.get("/api/v1/volumes?limit=3")).json()
    second = (await client.get(f"/api/v1/volumes?limit=3&cursor={first['next_cursor']}")).json()

    assert [item["name"] for item in first["items"] + second["items"]] == [
        f"bulk-{number}" for number in range(4, -1, -1)
    ]
    assert second["next_cursor"] is None


async def test_schema_is_created_by_migrations(services: Services) -> None:
    await services.database.require_migrated()
    async with services.database.transaction() as session:
        assert await session.scalar(text("SELECT count(*) FROM alembic_version")) == 1


async def test_document_describes_both_versions(client: httpx.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]

    assert {"/api/v0/volumes", "/api/v0/volumes/expand", "/api/v1/volumes", "/api/v1/volumes/expand"} <= paths.keys()
    assert (await client.get("/docs")).status_code == 200
