"""Growth never decides by a number that says nothing about use, and a dry run says since when it knows."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest

from domain.services import Services, open_services
from domain.settings import Settings
from tests.integration.conftest import RunningWorker
from tests.integration.job_builders import sql, volume_row
from tests.support.bulk import MIB, add_volumes

VOLUMES, EXPAND, WAIT = "/api/v1/volumes", "/api/v1/volumes/expand", {"Prefer": "wait=30"}
NIGHTLY: dict[str, Any] = {"policy": "autogrow"}
BY_USAGE: dict[str, Any] = {"percent": 20, "usage_above": 80}
FIFTH = {"usage_above": 80, "percent": 20, "up_to": 20 * MIB}
CANNOT_TELL = "Its backend cannot tell how much of it is in use."
NOT_YET = "It has not been measured yet: the expansion itself does that first."


@pytest.fixture
def own_settings(settings: Settings, tmp_path: Path) -> Settings:
    backends = {"sparse": f"file:{tmp_path}/sparse", "full": f"file:{tmp_path}/full?allocate=full", "null": "null:"}
    return settings.model_copy(update={"backends": backends})


@pytest.fixture
async def services(own_settings: Settings) -> AsyncIterator[Services]:
    async with open_services(own_settings, adopt=True) as services, services.watcher.watching():
        yield services


async def post(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Post a request and return its ended job."""
    job: dict[str, Any] = (await client.post(path, json=body, headers=WAIT)).json()
    assert job["status"] == "succeeded", job
    return job


async def create(client: httpx.AsyncClient, name: str, backend: str, *, written: int = 0) -> UUID:
    """Create a volume of 10 MiB that grows by its policy, with ``written`` MiB in it."""
    job = await post(client, VOLUMES, {"name": name, "size": 10 * MIB, "backend": backend, "autogrow": FIFTH})
    _write(Path((await client.get(f"{VOLUMES}/{job['volume_id']}")).json()["path"]), written)
    return UUID(job["volume_id"])


def _write(path: Path, mebibytes: int) -> None:
    with path.open("r+b") as file:
        file.write(b"x" * mebibytes * MIB)


async def expand(client: httpx.AsyncClient, body: dict[str, Any]) -> list[tuple[Any, ...]]:
    """Run a bulk expansion; return code, detail, usage and new size of each item."""
    job = await post(client, EXPAND, body)
    items = (await client.get(f"/api/v1/jobs/{job['id']}/items")).json()["items"]
    return [(item["code"], item["detail"], item["used"], item["to_size"]) for item in items]


async def dry_run(client: httpx.AsyncClient, body: dict[str, Any]) -> dict[str, Any]:
    plan: dict[str, Any] = (await client.post(EXPAND, json=body | {"dry_run": True})).json()
    return plan


@pytest.mark.parametrize("request_body", [NIGHTLY, BY_USAGE], ids=["nightly", "usage_above"])
async def test_empty_volume_with_reserved_blocks_never_grows(
    client: httpx.AsyncClient,
    services: Services,
    own_settings: Settings,
    running_worker: RunningWorker,
    request_body: dict[str, Any],
) -> None:
    async with running_worker(own_settings):
        volume_id = await create(client, "reserved", "full")
        await sql(services, f"UPDATE volumes SET used = {10 * MIB}, used_at = now()")  # by an earlier version
        for _ in range(3):
            assert await expand(client, request_body) == [("usage-unknown", CANNOT_TELL, None, None)]

    volume = await volume_row(services, volume_id)
    assert (volume["size"], volume["used"], volume["used_at"] is None) == (10 * MIB, None, False)
    (item,) = (await dry_run(client, request_body))["items"]
    assert (item["code"], item["detail"], item["used_at"] is None) == ("usage-unknown", CANNOT_TELL, False)


async def test_volume_created_with_reserved_blocks_grows_by_what_is_in_it(
    client: httpx.AsyncClient, services: Services, own_settings: Settings, running_worker: RunningWorker, tmp_path: Path
) -> None:
    async with running_worker(own_settings):
        empty = await create(client, "empty", "full")
        filled = await create(client, "filled", "full", written=9)
    no_longer = own_settings.model_copy(update={"backends": own_settings.backends | {"full": f"file:{tmp_path}/full"}})
    async with running_worker(no_longer):
        await expand(client, NIGHTLY)

    assert [(await volume_row(services, one))["size"] for one in (empty, filled)] == [10 * MIB, 12 * MIB]


async def test_item_has_no_usage_that_its_job_has_not_measured(
    client: httpx.AsyncClient, services: Services, own_settings: Settings, running_worker: RunningWorker
) -> None:
    await add_volumes(services, 1, backend="null", used=MIB, autogrow=FIFTH)
    async with running_worker(own_settings):
        unmeasured = await expand(client, NIGHTLY)
        grown = await expand(client, {"by": MIB})

    assert unmeasured == [("usage-unknown", "It could not be measured.", None, None)]
    assert grown == [("expanded", None, None, 2 * MIB)]


async def test_restore_voids_the_measurement(
    client: httpx.AsyncClient, services: Services, own_settings: Settings, running_worker: RunningWorker
) -> None:
    async with running_worker(own_settings):
        volume_id = await create(client, "restored", "sparse")
        snapshot = await post(client, f"{VOLUMES}/{volume_id}/snapshots", {"name": "empty"})
        Path((await client.get(f"{VOLUMES}/{volume_id}")).json()["path"]).write_bytes(b"x" * 10 * MIB)
        assert [code for code, *_ in await expand(client, NIGHTLY)] == ["expanded"]
        assert (await dry_run(client, NIGHTLY))["grows"] == 1
        await post(client, f"/api/v1/snapshots/{snapshot['snapshot_id']}/restore", {})

    plan = await dry_run(client, NIGHTLY)
    assert (plan["grows"], plan["unmeasured"], plan["items"][0]["code"]) == (0, 1, "usage-unknown")


async def test_dry_run_says_what_was_not_measured_and_since_when_it_knows(
    client: httpx.AsyncClient, own_settings: Settings, running_worker: RunningWorker
) -> None:
    async with running_worker(own_settings):
        await create(client, "filling", "sparse", written=9)
        fresh = await dry_run(client, NIGHTLY)
        await expand(client, NIGHTLY)
        plan = await dry_run(client, BY_USAGE | {"usage_above": 10})
        by_amount = await dry_run(client, {"by": MIB})

    (item,) = fresh["items"]
    assert (fresh["grows"], fresh["unmeasured"], fresh["measured_at"]) == (0, 1, None)
    assert (item["code"], item["detail"], item["used_at"]) == ("usage-unknown", NOT_YET, None)
    (item,) = plan["items"]
    assert (plan["grows"], plan["unmeasured"], plan["measured_at"]) == (1, 0, item["used_at"])
    assert (item["used"], item["detail"], item["used_at"] is None) == (9 * MIB, None, False)
    assert (by_amount["grows"], by_amount["unmeasured"]) == (1, 0)


NOT_REPORTED = "No node has reported yet how much of its file system is in use."
REPORTED_LATE = "The node that has it has not reported on its file system for 5 minutes."


async def report(services: Services, volume_id: UUID, *, used: int, minutes_ago: int = 0, inodes_used: int = 1) -> None:
    """Report on a file system as a node does; ``used`` in MiB."""
    await sql(
        services,
        f"UPDATE volumes SET used = {used * MIB}, used_at = now() - interval '{minutes_ago} minutes',"
        f" inodes = 100, inodes_used = {inodes_used} WHERE id = :id",
        id=volume_id,
    )


async def with_filesystem(services: Services, **columns: object) -> UUID:
    """Insert a volume of 10 MiB with a file system, which a null backend can expand but not measure."""
    own: dict[str, object] = {"filesystem": "xfs", "autogrow": FIFTH, **columns}
    (volume_id,) = await add_volumes(services, 1, backend="null", size=10 * MIB, **own)
    return volume_id


async def attach(services: Services, volume_id: UUID) -> None:
    await sql(
        services,
        "INSERT INTO attachments (id, volume_id, node, holder, mode, state, generation)"
        " VALUES (gen_random_uuid(), :id, 'n', 'h', 'rw', 'attached', 1)",
        id=volume_id,
    )


@pytest.mark.parametrize("request_body", [NIGHTLY, BY_USAGE], ids=["nightly", "usage_above"])
@pytest.mark.parametrize(
    ("minutes_ago", "attached", "outcome"),
    [
        (None, False, ("usage-unknown", NOT_REPORTED, None, None)),
        (None, True, ("usage-unknown", NOT_REPORTED, None, None)),
        (4, True, ("expanded", None, 9 * MIB, 12 * MIB)),
        (6, True, ("usage-unknown", REPORTED_LATE, None, None)),
        (6000, False, ("expanded", None, 9 * MIB, 12 * MIB)),
    ],
)
async def test_volume_with_a_file_system_grows_by_what_its_node_reports(
    client: httpx.AsyncClient,
    services: Services,
    own_settings: Settings,
    running_worker: RunningWorker,
    *,
    request_body: dict[str, Any],
    minutes_ago: int | None,
    outcome: tuple[Any, ...],
    attached: bool,
) -> None:
    volume_id = await with_filesystem(services)
    if minutes_ago is not None:
        await report(services, volume_id, used=9, minutes_ago=minutes_ago)
    if attached:
        await attach(services, volume_id)
    plan = await dry_run(client, request_body)
    async with running_worker(own_settings):
        done = await expand(client, request_body)

    code, detail, used, to_size = outcome
    assert done == [outcome]
    (item,) = plan["items"]
    planned = None if code == "expanded" else code
    assert (item["code"], item["detail"], item["used"], item["to_size"]) == (planned, detail, used, to_size)
    assert plan["unmeasured"] == 0, "the expansion itself measures no file system"


async def test_blocks_of_a_file_system_are_not_measured(
    client: httpx.AsyncClient, services: Services, own_settings: Settings, running_worker: RunningWorker
) -> None:
    """Files that were written and deleted leave every block allocated: the volume is empty all the same."""
    async with running_worker(own_settings):
        volume_id = await create(client, "emptied", "sparse", written=10)
        await sql(services, "UPDATE volumes SET filesystem = 'xfs'")
        await report(services, volume_id, used=1)

        assert await expand(client, NIGHTLY) == [("below-threshold", None, MIB, None)]
        assert (await volume_row(services, volume_id))["used"] == MIB


async def test_volume_without_free_inodes_grows_if_its_policy_says_so(
    client: httpx.AsyncClient, services: Services, own_settings: Settings, running_worker: RunningWorker
) -> None:
    volume_id = await with_filesystem(services, autogrow=FIFTH | {"inodes_above": 90})
    await report(services, volume_id, used=1, inodes_used=91)
    async with running_worker(own_settings):
        assert await expand(client, NIGHTLY) == [("expanded", None, MIB, 12 * MIB)]
        await sql(services, "UPDATE volumes SET autogrow = autogrow - 'inodes_above'")
        assert await expand(client, NIGHTLY) == [("below-threshold", None, MIB, None)]


@pytest.mark.parametrize("backend", ["sparse", "null"])
async def test_growths_of_a_volume_are_a_cooldown_apart(
    client: httpx.AsyncClient,
    services: Services,
    own_settings: Settings,
    running_worker: RunningWorker,
    backend: str,
) -> None:
    policy = FIFTH | {"usage_above": 10, "cooldown_seconds": 3600}
    async with running_worker(own_settings):
        if backend == "null":
            volume_id = await with_filesystem(services, autogrow=policy)
            await report(services, volume_id, used=9)
        else:
            volume_id = await create(client, "filling", "sparse", written=9)
            await services.volumes.change(volume_id, {"autogrow": policy})
        assert [item[0] for item in await expand(client, NIGHTLY)] == ["expanded"]
        assert [item[0] for item in await expand(client, NIGHTLY)] == ["cooling-down"]
        assert [one["code"] for one in (await dry_run(client, NIGHTLY))["items"]] == ["cooling-down"]
        by_request = {"by": MIB, "cooldown_seconds": 3600}
        assert [item[0] for item in await expand(client, by_request)] == ["cooling-down"]
        await sql(services, "UPDATE volumes SET grown_at = grown_at - interval '1 hour'")

        assert [item[0] for item in await expand(client, NIGHTLY)] == ["expanded"]
