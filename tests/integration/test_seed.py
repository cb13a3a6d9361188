"""What the sample had from which Cistern grew: a test for each row of the list, and for each of its four claims."""

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
from api.dependencies import _volumes
from domain.bulk import chunks as chunks_module
from domain.bulk.expand.policy import BulkExpandRequest, GrowthPolicy
from domain.db.database import Database
from domain.db.pagination import PageRequest
from domain.jobs.idempotency import ANONYMOUS
from domain.jobs.model import Job
from domain.services import Services, open_services
from domain.settings import Settings
from domain.volumes.growth import Growth
from domain.volumes.repository import VolumeFilter, VolumeRepository
from domain.volumes.service import NewVolume, VolumeService
from tests.acceptance import journal
from tests.conftest import LogAtDebug
from tests.integration.conftest import RunningWorker
from tests.support.bulk import MIB, add_volumes, ended, most_at_once
from tests.support.http import client_of
from tests.unit.fakes import FakeServices, volume_row

HOUSE = Path(__file__).parents[2]
BY_ONE = GrowthPolicy(by=MIB)
WAIT = {"Prefer": "wait=30"}


@pytest.fixture
def seed_settings(settings: Settings, tmp_path: Path) -> Settings:
    options = f"journal={tmp_path / 'journal'}&fail=@{tmp_path / 'faults'}&gate={tmp_path / 'gate'}"
    return settings.model_copy(update={"backends": {"null": f"faulty+null:?{options}"}, "max_jobs": 20})


@pytest.fixture
async def services(seed_settings: Settings) -> AsyncIterator[Services]:
    async with open_services(seed_settings) as services, services.watcher.watching():
        yield services


async def grown(services: Services, **wish: Any) -> Job:
    return await ended(services, await services.expansion.request_expand(BulkExpandRequest(BY_ONE, **wish)))


# --- routes, services, repositories and ORM are separated; the same services serve several endpoints ----------


def test_layers_are_separated_and_their_contracts_kept() -> None:
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"
    held = subprocess.run([sys.executable, "-c", code], cwd=HOUSE, capture_output=True, text=True, check=False)

    assert held.returncode == 0, held.stdout
    assert "HTTP speaks to services, never to SQL, arq or storage KEPT" in held.stdout


async def test_the_same_service_serves_v0_v1_and_the_worker(
    services: Services, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[VolumeService] = []
    original = VolumeService.request_create

    async def noted(self: VolumeService, wanted: NewVolume, *, origin: Any = ANONYMOUS) -> Job:
        asked.append(self)
        return await original(self, wanted, origin=origin)

    monkeypatch.setattr(VolumeService, "request_create", noted)
    monkeypatch.setattr("api.v0.wait.MAX_WAIT_SECONDS", 0)
    for version in ("v0", "v1"):
        answer = await client.post(f"/api/{version}/volumes", json={"name": version, "size": 1})
        assert answer.status_code == 202

    performs = services.handlers["volume.create"].perform.__self__  # type: ignore[attr-defined]
    assert [*asked, performs] == [services.volumes] * 3


# --- VolumeActionsService.create, expand_volumes, list_volumes ------------------------------------------------


async def test_the_services_create_expand_and_list_volumes(
    services: Services, seed_settings: Settings, running_worker: RunningWorker
) -> None:
    async with running_worker(seed_settings):
        made = await ended(services, await services.volumes.request_create(NewVolume("one", MIB)))
        job = await grown(services)

    (volume,) = (await services.volumes.list_volumes(VolumeFilter(), PageRequest("volumes"))).items
    assert (made.status, job.status) == ("succeeded", "succeeded")
    assert (volume.name, volume.state, volume.size) == ("one", "available", 2 * MIB)


# --- VolumeRepository(session), named queries in one place; sessions that commit or roll back -----------------


def statements(path: Path) -> set[str]:
    names = {"select", "update", "delete", "insert"}
    nodes = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
    return {node.func.id for node in nodes if isinstance(node.func, ast.Name)} & names


def test_all_queries_for_volumes_and_snapshots_are_in_their_repositories() -> None:
    for room in ("volumes", "snapshots"):
        asking = {path.name for path in (HOUSE / "domain" / room).glob("*.py") if statements(path)}
        assert asking == {"repository.py"}, room


async def test_a_session_commits_on_a_clean_exit_and_rolls_back_on_an_exception(services: Services) -> None:
    kept, lost = (volume_row(name, backend="null") for name in ("kept", "lost"))
    async with services.database.transaction() as session:
        await VolumeRepository(session).add(kept)

    async def fail() -> None:
        async with services.database.transaction() as session:
            await VolumeRepository(session).add(lost)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    async with services.database.transaction() as session:
        found = await VolumeRepository(session).page(VolumeFilter(), before=None, limit=5)
    assert [volume.name for volume in found] == ["kept"]


# --- size: current_size + 123, computed from a stale read -----------------------------------------------------


async def test_no_growth_is_lost_to_a_stale_read(
    services: Services, seed_settings: Settings, running_worker: RunningWorker
) -> None:
    (volume_id,) = await add_volumes(services, 1, backend="null")
    async with running_worker(seed_settings):
        jobs = [await services.expansion.request_expand(BulkExpandRequest(BY_ONE)) for _ in range(3)]
        written = [
            await services.bulk.items((await ended(services, job)).id, None, after=None, limit=1) for job in jobs
        ]

    assert (await services.volumes.get(volume_id)).size == 4 * MIB
    assert sorted(item.to_size or 0 for (item,) in written) == [2 * MIB, 3 * MIB, 4 * MIB], (
        "written down under the lock"
    )


# --- TaskGroup and Semaphore: the four claims -----------------------------------------------------------------


async def all_at_work(tmp_path: Path, count: int) -> None:
    """Wait until so many volumes are being expanded, held up by the gate."""
    async with asyncio.timeout(30):
        while most_at_once(journal.read(tmp_path / "journal")) < count:
            await asyncio.sleep(0.02)


async def test_claim_1_volumes_are_expanded_concurrently(
    services: Services, seed_settings: Settings, running_worker: RunningWorker, tmp_path: Path
) -> None:
    await add_volumes(services, 40, backend="null")
    (tmp_path / "gate").touch()
    async with running_worker(seed_settings):
        job = await services.expansion.request_expand(BulkExpandRequest(BY_ONE))
        await all_at_work(tmp_path, 10)  # the seed's default
        (tmp_path / "gate").unlink()
        job = await ended(services, job)

    assert (job.status, job.succeeded, job.params["max_concurrent"]) == ("succeeded", 40, 10)
    assert most_at_once(journal.read(tmp_path / "journal")) == 10


async def test_claim_2_never_more_than_max_concurrent_at_once(
    services: Services, seed_settings: Settings, running_worker: RunningWorker, tmp_path: Path
) -> None:
    await add_volumes(services, 40, backend="null")
    (tmp_path / "gate").touch()
    async with running_worker(seed_settings), running_worker(seed_settings):
        job = await services.expansion.request_expand(BulkExpandRequest(BY_ONE, max_concurrent=3))
        await all_at_work(tmp_path, 3)
        await asyncio.sleep(0.5)  # a fourth would have begun by now
        (tmp_path / "gate").unlink()
        assert (await ended(services, job)).succeeded == 40

    assert most_at_once(journal.read(tmp_path / "journal")) == 3


class NotedSessions:
    """A session factory that remembers in which task each session was opened."""

    def __init__(self, database: Database) -> None:
        self._open = database._sessions
        self.opened: list[tuple[asyncio.Task[Any] | None, AsyncSession]] = []

    def __call__(self) -> AsyncSession:
        session = self._open()
        self.opened.append((asyncio.current_task(), session))
        return session


async def test_claim_3_each_task_has_a_session_of_its_own(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the row on ScopedSession: 200 tasks, 200 sessions, none shared."""
    volumes = await add_volumes(services, 200, backend="memory")
    noted = NotedSessions(services.database)
    monkeypatch.setattr(services.database, "_sessions", noted)
    slots = asyncio.Semaphore(20)  # no more than there are connections: on a busy machine a queue for one has an end

    async def request(volume_id: UUID) -> None:
        async with slots:
            await services.volumes.request_delete(volume_id)

    async with asyncio.TaskGroup() as group:
        tasks = {group.create_task(request(volume_id)) for volume_id in volumes}

    assert len(tasks) == len(noted.opened) == 200
    assert {task for task, _ in noted.opened} == tasks
    assert len({id(session) for _, session in noted.opened}) == 200


async def test_claim_4_one_failure_does_not_block_the_others(
    services: Services, seed_settings: Settings, running_worker: RunningWorker, tmp_path: Path
) -> None:
    volumes = await add_volumes(services, 40, backend="null")
    (tmp_path / "faults").write_text(f"expand:storage-full {volumes[0]}\n")
    async with running_worker(seed_settings):
        job = await grown(services, max_concurrent=40)

    assert (job.status, job.succeeded, job.failed) == ("partial", 39, 1)


# --- POST /api/v1/volumes/expand, max_concurrent in the request, logs, live progress --------------------------


async def test_the_route_takes_max_concurrent_and_the_logs_show_it_and_each_volume(
    services: Services,
    client: httpx.AsyncClient,
    seed_settings: Settings,
    running_worker: RunningWorker,
    log_at_debug: LogAtDebug,
) -> None:
    log_at_debug(chunks_module)  # what is not shown is not even said
    volumes = await add_volumes(services, 12, backend="null")
    with structlog.testing.capture_logs() as logs:
        async with running_worker(seed_settings):
            answer = await client.post("/api/v1/volumes/expand", json={"by": 1, "max_concurrent": 4}, headers=WAIT)

    counts = {"unit": "volumes", "total": 12, "succeeded": 12, "failed": 0, "skipped": 0}
    assert answer.json()["progress"].items() >= counts.items()
    events = Counter(entry["event"] for entry in logs)
    (accepted,) = [entry for entry in logs if entry["event"] == "bulk.accepted"]
    assert (accepted["max_concurrent"], accepted["job_id"]) == (4, answer.json()["id"])
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
@pytest.mark.parametrize("thing", ["volumes", "snapshots"])
async def test_both_versions_list_volumes_and_snapshots_in_pages(
    services: Services, client: httpx.AsyncClient, version: str, thing: str
) -> None:
    (volume_id,) = await add_volumes(services, 1, backend="null")
    async with services.database.transaction() as session:
        await session.execute(
            text(
                "INSERT INTO snapshots (id, volume_id, name, state, size, version)"
                " SELECT gen_random_uuid(), id, 's', 'ready', 1, 1 FROM volumes"
            )
        )
    page = (await client.get(f"/api/{version}/{thing}?limit=1")).json()

    assert page.keys() == {"items", "next_cursor"} == api.schemas.pagination.Paginated.model_fields.keys()
    assert [item.get("volume_id") or item["id"] for item in page["items"]] == [str(volume_id)]
    assert inspect.getsource(sys.modules[f"api.{version}.{thing}"]).count("return paginated_response(") >= 1


# --- Depends hands routes their services ----------------------------------------------------------------------


async def test_depends_hands_a_route_its_service_and_can_hand_it_another(app: FastAPI) -> None:
    fake = FakeServices()
    fake.volumes.add(volume_row("from-elsewhere"))
    app.dependency_overrides[_volumes] = lambda: fake.volumes
    async with client_of(app) as client:
        items = (await client.get("/api/v1/volumes")).json()["items"]

    assert [item["name"] for item in items] == ["from-elsewhere"]


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


def test_no_route_is_handed_a_session_or_a_repository() -> None:
    for handler in handlers():
        handed = {kind.__name__ for kind in get_type_hints(handler).values() if isinstance(kind, type)}
        assert not {name for name in handed if "Session" in name or "Repository" in name}, handler


# --- PostgreSQL by docker-compose; full type hints; async first -----------------------------------------------


def test_postgresql_is_in_the_compose_file() -> None:
    assert "image: postgres:" in (HOUSE / "docker-compose.yaml").read_text()


def test_every_type_is_checked_strictly() -> None:
    mypy = tomllib.loads((HOUSE / "pyproject.toml").read_text())["tool"]["mypy"]

    assert mypy["strict"]
    assert {"api", "worker", "domain"} <= set(mypy["files"])


def test_every_route_is_async() -> None:
    assert all(inspect.iscoroutinefunction(handler) for handler in handlers())


# --- what was wished for: error handling and logging, caching, pagination, migrations, tests, OpenAPI ---------


async def test_an_error_is_a_problem_with_the_id_that_the_logs_have(client: httpx.AsyncClient) -> None:
    answer = await client.get(f"/api/v1/volumes/{UUID(int=7)}", headers={"X-Request-ID": "find-me"})

    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.json()["code"], answer.json()["request_id"]) == ("volume-not-found", "find-me")


@pytest.mark.parametrize("kind", ["volumes", "jobs"])
async def test_what_a_client_has_seen_is_not_sent_again_until_it_changes(
    services: Services, client: httpx.AsyncClient, kind: str
) -> None:
    (volume_id,) = await add_volumes(services, 1, backend="null")
    job = await services.volumes.request_expand(volume_id, Growth(by=1))
    address = f"/api/v1/{kind}/{volume_id if kind == 'volumes' else job.id}"
    seen = {"If-None-Match": (await client.get(address)).headers["etag"]}

    assert (await client.get(address, headers=seen)).status_code == 304
    await services.jobs.cancel(job.id)
    assert (await client.get(address, headers=seen)).status_code == 200


async def test_a_relabelled_volume_is_sent_again(services: Services, client: httpx.AsyncClient) -> None:
    (volume_id,) = await add_volumes(services, 1, backend="null")
    address = f"/api/v1/volumes/{volume_id}"
    seen = {"If-None-Match": (await client.get(address)).headers["etag"]}
    await client.patch(address, json={"labels": {"a": "b"}})

    assert (await client.get(address, headers=seen)).status_code == 200


async def test_pages_follow_one_another(services: Services, client: httpx.AsyncClient) -> None:
    await add_volumes(services, 5, backend="null")
    first = (await client.get("/api/v1/volumes?limit=3")).json()
    second = (await client.get(f"/api/v1/volumes?limit=3&cursor={first['next_cursor']}")).json()

    assert [item["name"] for item in first["items"] + second["items"]] == [
        f"bulk-{number}" for number in range(4, -1, -1)
    ]
    assert second["next_cursor"] is None


async def test_the_database_is_made_by_migrations(services: Services) -> None:
    await services.database.require_migrated()
    async with services.database.transaction() as session:
        assert await session.scalar(text("SELECT count(*) FROM alembic_version")) == 1


async def test_the_document_describes_both_versions(client: httpx.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]

    assert {"/api/v0/volumes", "/api/v0/volumes/expand", "/api/v1/volumes", "/api/v1/volumes/expand"} <= paths.keys()
    assert (await client.get("/docs")).status_code == 200
