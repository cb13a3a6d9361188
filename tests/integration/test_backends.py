"""Workers serve only the backends whose places are the expected ones, and take only the jobs that they can do."""

import asyncio
import json
import os
import re
import shutil
import threading
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from uuid import UUID

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from domain.bulk.expand import BulkExpandRequest, GrowthPolicy
from domain.bulk.model import Lane
from domain.bulk.requests import Selection
from domain.errors import DatabaseUnavailable, UnknownBackend
from domain.jobs.attempt import Yielded
from domain.services import Services, open_check, open_services
from domain.settings import Settings
from domain.storage import registry
from domain.storage.file.root import Root
from domain.volumes.model import Growth
from domain.volumes.service import NewVolume
from tests.integration.bulk_builders import a_claimed_lane, an_engine, items
from tests.integration.job_builders import MIB, ended, row, sql, until
from tests.support.worker import running_worker

FOREIGN = json.dumps({"installation": str(UUID(int=1)), "backend": "local", "id": str(UUID(int=2))})


@pytest.fixture
def frequent_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "LOOK_SECONDS", 0.05)


def with_backends(settings: Settings, folder: Path, *names: str) -> Settings:
    return settings.model_copy(update={"backends": {name: f"file:{folder}/{name}" for name in names}})


@pytest.fixture
async def api(settings: Settings, tmp_path: Path, frequent_looks: None) -> AsyncIterator[Services]:
    """Services as the API has them: it reaches no storage."""
    unreachable = {name: f"file:{tmp_path}/nowhere/{name}" for name in ("local", "fast")}
    changed = settings.model_copy(update={"backends": unreachable})
    async with open_services(changed) as services, services.watcher.watching():
        yield services
    assert not (tmp_path / "nowhere").exists()


@asynccontextmanager
async def workers(settings: Settings, folder: Path, *served: tuple[str, ...]) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        for names in served:
            await stack.enter_async_context(running_worker(with_backends(settings, folder, *names)))
        yield


async def created(api: Services, name: str, backend: str) -> UUID:
    accepted = await api.volumes.request_create(NewVolume(name, MIB, backend=backend))
    job = await ended(api, accepted.id)
    assert (job.status, job.attempt) == ("succeeded", 1)
    assert job.volume_id is not None
    return job.volume_id


async def problem_of(api: Services, name: str) -> str | None:
    await api.directory.refresh()
    return (await api.directory.find(name)).problem


async def test_single_jobs_run_where_their_backend_is(api: Services, settings: Settings, tmp_path: Path) -> None:
    async with workers(settings, tmp_path, ("local",), ("fast",), ("local", "fast")):
        for number in range(6):
            for backend in ("local", "fast"):
                volume_id = await created(api, f"{backend}-{number}", backend)
                assert (tmp_path / backend / str(volume_id) / "data").stat().st_size == MIB
        assert await sql(api, "SELECT count(*) FROM jobs WHERE attempt <> 1 OR status <> 'succeeded'") == [(0,)]


async def test_bulk_job_over_two_backends_expands_all(api: Services, settings: Settings, tmp_path: Path) -> None:
    async with workers(settings, tmp_path, ("local",), ("fast",)):
        volumes = [await created(api, f"{name}-{n}", name) for n in range(10) for name in ("local", "fast")]
        request = BulkExpandRequest(GrowthPolicy(to=2 * MIB), selection=Selection(), max_concurrent=4)
        job = await ended(api, (await api.bulk.request(request)).id)

    assert (job.status, job.succeeded) == ("succeeded", len(volumes))
    sizes = {path.stat().st_size for path in tmp_path.glob("*/*/data")}
    assert sizes == {2 * MIB}


async def test_bulk_job_with_one_slot_works_on_the_backends_in_turn(
    api: Services, settings: Settings, tmp_path: Path
) -> None:
    async with workers(settings, tmp_path, ("local",), ("fast",)):
        for name in ("local", "fast"):
            await created(api, name, name)
        request = BulkExpandRequest(GrowthPolicy(to=2 * MIB), selection=Selection(), max_concurrent=1)
        job = await ended(api, (await api.bulk.request(request)).id)

    assert (job.status, job.succeeded, job.attempt) == ("succeeded", 2, 1)


async def test_job_that_nobody_can_do_waits_and_says_for_what(
    api: Services, settings: Settings, tmp_path: Path
) -> None:
    async with workers(settings, tmp_path, ("local",)):
        job = await api.volumes.request_create(NewVolume("waits", MIB, backend="fast"))
        await sql(api, "UPDATE jobs SET run_at = now() - interval '6 seconds'")

        async def says_so() -> bool:
            return (await row(api, job.id)).error is not None

        await until(says_so)
        waiting = await row(api, job.id)
        assert (waiting.status, waiting.attempt) == ("queued", 0)
        assert waiting.error is not None
        assert waiting.error["code"] == "backend-not-served"
        assert await problem_of(api, "fast") == "no worker has it among its CISTERN_BACKENDS"
        async with workers(settings, tmp_path, ("fast",)):
            done = await ended(api, job.id)

    assert (done.status, done.attempt, done.error) == ("succeeded", 1, None)


@pytest.mark.parametrize("cause", ["unmounted", "replaced by an empty one", "foreign", "swapped", "damaged"])
async def test_root_that_is_not_the_expected_one_is_left_alone(
    api: Services, settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture, cause: str
) -> None:
    """Under a running worker and at the start of another one; all is well when the root is back."""
    root, away = tmp_path / "local", tmp_path / "away"
    words = {"foreign": "another installation", "swapped": "that of the backend 'fast'", "damaged": "is damaged"}
    async with workers(settings, tmp_path, ("local", "fast")):
        volume_id = await created(api, "kept", "local")
        root.rename(away)
        if cause == "swapped":
            shutil.copytree(tmp_path / "fast", root)
        elif cause != "unmounted":
            root.mkdir()
        if cause in ("foreign", "damaged"):
            (root / ".cistern").write_text(FOREIGN if cause == "foreign" else "what?")
        before = sorted(root.rglob("*"))
        delete = await api.volumes.request_delete(volume_id)
        create = await api.volumes.request_create(NewVolume("new", MIB, backend="local"))
        async with workers(settings, tmp_path, ("local",)):
            await until(lambda: _has_problem(api, words.get(cause, "is its disk mounted")))
            await created(api, "elsewhere", "fast")
        assert sorted(root.rglob("*")) == before
        assert {(await row(api, job.id)).status for job in (delete, create)} == {"queued"}

        shutil.rmtree(root, ignore_errors=True)
        away.rename(root)
        done = [await ended(api, job.id) for job in (delete, create)]

    assert [(job.status, job.attempt) for job in done] == [("succeeded", 1)] * 2
    lines = [line for line in caplog.messages if "'backend.not_served'" in line and "'backend': 'local'" in line]
    said = Counter(re.search("'problem': (.*?), '", line)[1] for line in lines)  # type: ignore[index]
    assert said
    assert max(said.values()) <= 2, "each of two workers says so once"
    async with open_check(with_backends(settings, tmp_path, "local", "fast")) as check:
        assert [finding async for finding in check.findings(Counter())] == []


async def _has_problem(api: Services, words: str) -> bool:
    return words in (await problem_of(api, "local") or "")


async def test_check_of_another_directory_creates_nothing_and_says_so(
    api: Services, settings: Settings, tmp_path: Path
) -> None:
    async with workers(settings, tmp_path, ("local",)):
        await created(api, "kept", "local")
    elsewhere = with_backends(settings, tmp_path / "elsewhere", "local")
    async with open_check(elsewhere) as check:
        (finding,) = [finding async for finding in check.findings(Counter())]

    assert finding.code == "unreadable"
    assert not (tmp_path / "elsewhere").exists()


async def test_database_with_volumes_adopts_no_empty_root(api: Services, settings: Settings, tmp_path: Path) -> None:
    """As after an upgrade from a version without identities, with a disk that is not mounted."""
    async with workers(settings, tmp_path, ("local",)):
        await created(api, "kept", "local")
    await sql(api, "UPDATE backends SET identity = NULL")
    (tmp_path / "local").rename(tmp_path / "away")
    async with workers(settings, tmp_path, ("local",)):
        assert "has none of the volumes" in (await problem_of(api, "local") or "")

    assert not (tmp_path / "local").exists()


async def test_two_workers_with_disks_of_their_own_do_not_share_a_backend(
    api: Services, settings: Settings, tmp_path: Path
) -> None:
    here, there = with_backends(settings, tmp_path, "local"), with_backends(settings, tmp_path / "other", "local")
    async with running_worker(here), running_worker(there):
        await created(api, "once", "local")
        await api.directory.refresh()
        status = await api.directory.find("local")

    assert sorted(server.problem is None for server in status.servers) == [False, True]


async def test_unknown_backend_is_refused_naming_those_there_are(api: Services) -> None:
    with pytest.raises(UnknownBackend, match=r"There is no backend named 'tape'. There are: 'local', 'fast'."):
        await api.volumes.request_create(NewVolume("v", MIB, backend="tape"))


async def test_backends_and_readiness_show_who_serves(
    client: httpx.AsyncClient, services: Services, settings: Settings
) -> None:
    assert (await client.get("/readyz")).json()["status"] == "degraded"
    async with running_worker(settings):
        (backend,) = (await client.get("/api/v1/backends")).json()["items"]
        await asyncio.sleep(0)
        await services.directory.refresh()
        ready = (await client.get("/readyz")).json()

    assert (backend["name"], backend["served"], backend["problem"]) == ("memory", True, None)
    assert len(backend["workers"]) == 1
    assert (ready["status"], ready["backends"]) == ("ready", {"memory": "ok"})


async def test_fences_of_what_is_gone_for_good_are_removed(settings: Settings, tmp_path: Path) -> None:
    disk = with_backends(settings, tmp_path, "local")
    async with open_services(disk, adopt=True) as services, running_worker(disk):
        kept = await created(services, "kept", "local")
        for number in range(10):
            taken = await services.snapshots.request_take(kept, f"s{number}")
            await ended(services, taken.id)
            assert taken.snapshot_id is not None
            await ended(services, (await services.snapshots.request_delete(taken.snapshot_id)).id)
        fences = list((tmp_path / "local" / ".fences").iterdir())
        assert len(fences) == 11
        for path in fences:
            os.utime(path, (0, 0))
        assert await services.fence_retention.prune() == 0  # their jobs are not pruned yet
        await sql(services, "DELETE FROM jobs")

        assert await services.fence_retention.prune() == 10
        assert [path.name for path in (tmp_path / "local" / ".fences").iterdir()] == [str(kept)]
        grown = await services.volumes.request_expand(kept, Growth(to=2 * MIB))
        assert (await ended(services, grown.id)).status == "succeeded"


@pytest.mark.usefixtures("frequent_looks")
async def test_backend_promises_no_more_than_its_overcommit_ratio(
    services: Services, settings: Settings, client: httpx.AsyncClient
) -> None:
    limited = settings.model_copy(update={"backends": {"memory": "memory:?capacity=10MiB&overcommit=2"}})
    async with running_worker(limited):
        fits = await created(services, "fits", "memory")
        await sql(services, "UPDATE backends SET promised_at = NULL")
        await until(lambda: _has_promised(services, MIB))
        refused = [
            await client.post("/api/v1/volumes", json={"name": "large", "size": "20MiB"}),
            await client.post(f"/api/v1/volumes/{fits}/expand", json={"to": "21MiB"}),
            await client.post(f"/api/v1/volumes/{fits}/expand", json={"to": "21MiB"}, headers={"Idempotency-Key": "k"}),
        ]
        accepted = await client.post(f"/api/v1/volumes/{fits}/expand", json={"to": "9MiB"})

    assert [(one.status_code, one.json()["code"]) for one in refused] == [(409, "backend-overcommitted")] * 3
    assert refused[0].json()["requested"] == 20 * MIB
    assert accepted.status_code == 202


async def _has_promised(api: Services, size: int) -> bool:
    await api.directory.refresh()
    return (await api.directory.find("memory")).row.promised == size


async def test_directory_stays_usable_if_a_commit_of_its_reading_fails(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    transaction = services.database.transaction

    @asynccontextmanager
    async def failing() -> AsyncIterator[AsyncSession]:
        async with transaction() as session:
            yield session
            await session.rollback()
            raise DatabaseUnavailable

    monkeypatch.setattr(services.database, "transaction", failing)
    with pytest.raises(DatabaseUnavailable):
        await services.directory.refresh()

    assert [status.row.driver for status in services.directory.all()] == ["memory"]


async def test_storage_that_hangs_affects_only_its_own_backend(
    api: Services, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked only once at a time, the others stay served, and the worker can end."""
    monkeypatch.setattr(registry, "ANSWER_SECONDS", 0.1)
    hangs, asked = threading.Event(), Counter[str]()
    read = Root.read_identity

    def hanging(self: Root) -> str | None:
        name = self.path.name
        if name == "local" and hangs.is_set():
            asked[name] += 1
            threading.Event().wait()
        return read(self)

    monkeypatch.setattr(Root, "read_identity", hanging)
    async with asyncio.timeout(20), workers(settings, tmp_path, ("local", "fast")):
        hangs.set()
        await until(lambda: _has_problem(api, "has not answered within"))
        await created(api, "elsewhere", "fast")
        assert await problem_of(api, "fast") is None
    assert asked == {"local": 1}


async def test_cancelled_lane_leaves_held_volumes_to_those_who_reach_them(
    api: Services, settings: Settings, tmp_path: Path
) -> None:
    """Any worker may run a lane of a cancelled job, but only one that serves the backend can seal a volume."""
    async with workers(settings, tmp_path, ("fast",)):
        volume_id = await created(api, "held", "fast")
    async with open_services(with_backends(settings, tmp_path, "fast"), adopt=True) as services:
        engine = an_engine(services)
        job, claim = await a_claimed_lane(services, engine)
        steps = services.bulk.lane_steps(Lane.from_job(claim.job))
        await steps.acquire_volumes(await steps.claim_items(10), {})
        await engine.settle(claim.job, Yielded())
    await api.jobs.cancel(job.id)
    async with workers(settings, tmp_path, ("local",)):

        async def was_tried() -> bool:
            return (await row(api, claim.job.id)).epoch > 2

        await until(was_tried)
        assert {item.status for item in (await items(api, job)).values()} == {"claimed"}
        async with workers(settings, tmp_path, ("fast",)):
            done = await ended(api, job.id)

    assert (done.status, done.succeeded) == ("cancelled", 1)
    assert (tmp_path / "fast" / str(volume_id) / "data").stat().st_size == 2 * MIB


async def test_root_that_others_may_write_to_is_not_served_and_says_why(
    api: Services, settings: Settings, tmp_path: Path
) -> None:
    async with workers(settings, tmp_path, ("local", "fast")):
        await created(api, "before", "local")
        (tmp_path / "local").chmod(0o777)
        await until(lambda: _has_problem(api, "is not safe to use: everybody may write to it (mode 0777)"))
        await created(api, "elsewhere", "fast")
        (tmp_path / "local").chmod(0o755)
        await created(api, "after", "local")
