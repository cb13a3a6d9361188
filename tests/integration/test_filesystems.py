"""File systems of volumes: made with them, grown with them, and a growth that fails is never hidden."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import httpx
import pytest
from uuid_utils.compat import uuid7

from domain.db.base import DEFAULT_PROJECT
from domain.operations import VolumeState
from domain.services import Services, open_services
from domain.settings import Settings
from domain.storage.context import Grant
from domain.storage.errors import PermanentStorageError
from domain.storage.memory import MemoryDriver
from tests.integration.conftest import RunningWorker
from tests.integration.job_builders import sql, volume_row
from tests.support.bulk import MIB

VOLUMES, WAIT = "/api/v1/volumes", {"Prefer": "wait=30"}
BROKEN = "The file system has errors that only a person can correct."


@dataclass
class Formatted:
    """What the driver was asked to make and to grow."""

    made: dict[UUID, str | None] = field(default_factory=dict)
    grown: list[UUID] = field(default_factory=list)
    #: Whether growing a file system fails, and whether expanding a volume does.
    fails: bool = False
    refuses: bool = False


@pytest.fixture
def formatted(monkeypatch: pytest.MonkeyPatch) -> Formatted:
    """Let memory backends make ext4 and btrfs."""
    state, create, expand = Formatted(), MemoryDriver.create, MemoryDriver.expand

    async def create_with(
        self: MemoryDriver, volume_id: UUID, size: int, grant: Grant, filesystem: str | None = None
    ) -> int:
        state.made[volume_id] = filesystem
        return await create(self, volume_id, size, grant)

    async def grow(_: MemoryDriver, volume_id: UUID, filesystem: str, __: Grant) -> None:
        assert filesystem == "ext4", "the others grow while they are mounted"
        if state.fails:
            raise PermanentStorageError(BROKEN)
        state.grown.append(volume_id)

    async def expand_unless_refused(self: MemoryDriver, volume_id: UUID, size: int, grant: Grant) -> int:
        if state.refuses:
            raise PermanentStorageError
        return await expand(self, volume_id, size, grant)

    monkeypatch.setattr(MemoryDriver, "expand", expand_unless_refused)
    monkeypatch.setattr(MemoryDriver, "filesystems", ("btrfs", "ext4"), raising=False)
    monkeypatch.setattr(MemoryDriver, "create", create_with)
    monkeypatch.setattr(MemoryDriver, "grow_filesystem", grow, raising=False)
    return state


@pytest.fixture
def own_settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"backends": {"memory": "memory:", "null": "null:"}})


@pytest.fixture
async def services(own_settings: Settings, formatted: Formatted) -> AsyncIterator[Services]:
    assert formatted.made == {}
    async with open_services(own_settings, adopt=True) as services, services.watcher.watching():
        yield services


@pytest.fixture
async def _worker(services: Services, own_settings: Settings, running_worker: RunningWorker) -> AsyncIterator[None]:
    async with running_worker(own_settings):
        await services.directory.refresh()
        yield


async def ended(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Post a request and return its succeeded job."""
    job: dict[str, Any] = (await client.post(path, json=body, headers=WAIT)).json()
    assert job.get("status") == "succeeded", job
    return job


async def create(client: httpx.AsyncClient, filesystem: str | None = "ext4", **members: Any) -> str:
    body = {"name": uuid7().hex, "size": 512 * MIB, "filesystem": filesystem, **members}
    volume_id: str = (await ended(client, VOLUMES, body))["volume_id"]
    return volume_id


async def expand(client: httpx.AsyncClient, volume_id: str, to: int) -> dict[str, Any]:
    return await ended(client, f"{VOLUMES}/{volume_id}/expand", {"to": to * MIB})


async def growth(services: Services, volume_id: str) -> tuple[int, int | None, str | None]:
    """Return the size of a volume and of its file system in MiB, and why the latter is smaller."""
    volume = await volume_row(services, UUID(volume_id))
    grown_to = volume["filesystem_grown_to"]
    return volume["size"] // MIB, grown_to and grown_to // MIB, volume["filesystem_error"]


async def attach(services: Services, volume_id: str) -> None:
    """Let a node have the volume."""
    await sql(
        services,
        "INSERT INTO attachments (id, project_id, volume_id, node, holder, mode, state, generation)"
        " VALUES (gen_random_uuid(), :project, :volume, 'n', 'h', 'rw', 'attached', 1)",
        project=DEFAULT_PROJECT,
        volume=UUID(volume_id),
    )


@pytest.mark.usefixtures("_worker")
async def test_volume_is_made_with_its_file_system(
    client: httpx.AsyncClient, services: Services, formatted: Formatted
) -> None:
    with_ext4, with_none = await create(client), await create(client, None)

    assert formatted.made == {UUID(with_ext4): "ext4", UUID(with_none): None}
    assert (await growth(services, with_ext4), await growth(services, with_none)) == (
        (512, 512, None),
        (512, None, None),
    )
    shown = (await client.get(f"{VOLUMES}/{with_ext4}")).json()
    assert (shown["filesystem"], shown["filesystem_size"], shown["filesystem_error"]) == ("ext4", None, None)


@pytest.mark.usefixtures("_worker")
@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"size": "4MiB", "filesystem": "ext4"}, "size"),
        ({"size": "1GiB", "filesystem": "xfs"}, "filesystem"),
        ({"size": "1GiB", "filesystem": "ext4", "backend": "null"}, "filesystem"),
        ({"size": "1GiB", "filesystem": "zfs"}, "filesystem"),
    ],
)
async def test_file_system_that_cannot_be_made_is_refused_at_once(
    client: httpx.AsyncClient, services: Services, body: dict[str, Any], field: str
) -> None:
    refusal = await client.post(VOLUMES, json={"name": "one", **body})

    assert (refusal.status_code, [error["field"] for error in refusal.json()["errors"]]) == (422, [field]), refusal.text
    assert await sql(services, "SELECT * FROM volumes") == []


async def test_backends_say_which_file_systems_they_make(
    client: httpx.AsyncClient, services: Services, own_settings: Settings, running_worker: RunningWorker
) -> None:
    async with running_worker(own_settings):
        await services.directory.refresh()
        items = (await client.get("/api/v1/backends")).json()["items"]

    assert {one["name"]: one["filesystems"] for one in items} == {"memory": ["btrfs", "ext4"], "null": []}


@pytest.mark.usefixtures("_worker")
async def test_expansion_grows_the_file_system_that_grows_offline(
    client: httpx.AsyncClient, services: Services, formatted: Formatted
) -> None:
    ext4, btrfs, none = await create(client), await create(client, "btrfs"), await create(client, None)
    for volume_id in (ext4, btrfs, none):
        await expand(client, volume_id, 1024)

    assert formatted.grown == [UUID(ext4)]
    assert [await growth(services, one) for one in (ext4, btrfs, none)] == [
        (1024, 1024, None),
        (1024, 512, None),
        (1024, None, None),
    ]


@pytest.mark.usefixtures("_worker")
@pytest.mark.parametrize("keyed", [False, True])
async def test_file_system_of_an_attached_volume_is_left_to_its_node(
    client: httpx.AsyncClient, services: Services, formatted: Formatted, *, keyed: bool
) -> None:
    volume_id = await create(client)
    await attach(services, volume_id)
    headers = WAIT | ({"Idempotency-Key": "one"} if keyed else {})
    job = (await client.post(f"{VOLUMES}/{volume_id}/expand", json={"to": "1GiB"}, headers=headers)).json()

    assert (job["status"], formatted.grown) == ("succeeded", [])
    assert await growth(services, volume_id) == (1024, 512, None)


@pytest.mark.usefixtures("_worker")
async def test_failed_growth_is_shown_and_ends_with_the_next_try(
    client: httpx.AsyncClient, services: Services, formatted: Formatted
) -> None:
    volume_id = await create(client)
    formatted.fails = True
    await expand(client, volume_id, 1024)
    shown = (await client.get(f"{VOLUMES}/{volume_id}")).json()
    assert (shown["size"], shown["filesystem_error"], shown["state"]) == (1024 * MIB, BROKEN, "available")
    assert await growth(services, volume_id) == (1024, 512, BROKEN)

    formatted.fails = False
    await expand(client, volume_id, 1024)

    assert await growth(services, volume_id) == (1024, 1024, None)


@pytest.mark.usefixtures("_worker")
async def test_bulk_expansion_grows_file_systems_and_tells_which_it_could_not(
    client: httpx.AsyncClient, services: Services, formatted: Formatted
) -> None:
    free, attached, none = await create(client), await create(client), await create(client, None)
    await attach(services, attached)
    await ended(client, f"{VOLUMES}/expand", {"by": "512MiB"})
    assert formatted.grown == [UUID(free)]
    assert [await growth(services, one) for one in (free, attached, none)] == [
        (1024, 1024, None),
        (1024, 512, None),
        (1024, None, None),
    ]

    formatted.fails = True
    job = await ended(client, f"{VOLUMES}/expand", {"by": "512MiB", "ids": [free]})

    (item,) = (await client.get(f"/api/v1/jobs/{job['id']}/items")).json()["items"]
    assert (item["status"], item["code"], item["detail"]) == ("succeeded", "expanded", BROKEN)
    assert await growth(services, free) == (1536, 1024, BROKEN)


@pytest.mark.usefixtures("_worker")
async def test_clone_and_restored_volume_keep_the_file_system_and_grow_it(
    client: httpx.AsyncClient, services: Services, formatted: Formatted
) -> None:
    volume_id = await create(client)
    snapshot_id = (await ended(client, f"{VOLUMES}/{volume_id}/snapshots", {"name": "s"}))["snapshot_id"]
    await expand(client, volume_id, 1024)
    await sql(services, "UPDATE volumes SET used = 1, used_at = now(), inodes = 1, filesystem_size = 1")
    await ended(client, f"/api/v1/snapshots/{snapshot_id}/restore", {})
    clone = await create(client, None, from_snapshot=snapshot_id, size="2GiB")

    assert formatted.grown == [UUID(volume_id), UUID(volume_id), UUID(clone)]
    assert (await growth(services, volume_id), await growth(services, clone)) == (
        (1024, 1024, None),
        (2048, 2048, None),
    )
    restored, cloned = await volume_row(services, UUID(volume_id)), await volume_row(services, UUID(clone))
    assert cloned["filesystem"] == "ext4"
    assert [restored[name] for name in ("used", "used_at", "inodes", "filesystem_size")] == [None] * 4

    body = {"name": "other", "from_snapshot": snapshot_id, "filesystem": "xfs"}
    refusal = await client.post(VOLUMES, json=body)
    assert (refusal.status_code, refusal.json()["errors"][0]["field"]) == (422, "filesystem")


@pytest.mark.usefixtures("_worker")
async def test_file_system_that_only_nodes_grow_is_not_known_to_have_the_size_of_a_clone(
    client: httpx.AsyncClient, services: Services, formatted: Formatted
) -> None:
    volume_id = await create(client, "btrfs")
    snapshot_id = (await ended(client, f"{VOLUMES}/{volume_id}/snapshots", {"name": "s"}))["snapshot_id"]
    clone = await create(client, "btrfs", from_snapshot=snapshot_id)
    await ended(client, f"/api/v1/snapshots/{snapshot_id}/restore", {})

    assert (await growth(services, clone), await growth(services, volume_id)) == ((512, 0, None), (512, 0, None))
    assert formatted.grown == []


@pytest.mark.usefixtures("_worker")
async def test_retry_decides_anew_whether_the_worker_grows_the_file_system(
    client: httpx.AsyncClient, services: Services, formatted: Formatted
) -> None:
    volume_id = await create(client)
    formatted.refuses = True
    job = (await client.post(f"{VOLUMES}/{volume_id}/expand", json={"to": "1GiB"}, headers=WAIT)).json()
    assert job["status"] == "failed"
    formatted.refuses = False
    await attach(services, volume_id)
    retry = (await client.post(f"/api/v1/jobs/{job['id']}/retry", headers=WAIT)).json()

    assert (retry["status"], formatted.grown) == ("succeeded", [])
    assert await growth(services, volume_id) == (1024, 512, None)


@pytest.mark.usefixtures("_worker")
async def test_growth_is_remembered_only_if_the_volume_became_larger(
    client: httpx.AsyncClient, services: Services
) -> None:
    volume_id = await create(client, None)
    await expand(client, volume_id, 512)
    before = (await volume_row(services, UUID(volume_id)))["grown_at"]
    await expand(client, volume_id, 513)
    volume = await volume_row(services, UUID(volume_id))

    assert (before, volume["grown_at"], volume["state"]) == (None, volume["updated_at"], VolumeState.AVAILABLE)
