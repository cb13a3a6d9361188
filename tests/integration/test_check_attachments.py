"""`cistern check` compares attachments with jobs, mounts, agents and the kernel of this host."""

from collections import Counter
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from domain.check import attachments as check_attachments
from domain.check.attachments import HostView
from domain.errors import StorageError
from domain.services import Services, open_services
from domain.settings import Settings
from domain.volumes.attachments.service import NewAttachment
from domain.volumes.model import Volume
from tests.integration.check_builders import on_disk, repair_all, run_check
from tests.integration.job_builders import sql
from tests.integration.snapshot_builders import a_stored_volume

NODE = "web-1"


@pytest.fixture
async def services(settings: Settings, tmp_path: Path) -> AsyncIterator[Services]:
    async with open_services(on_disk(settings, tmp_path), adopt=True) as services:
        await an_agent(services)
        yield services


async def an_agent(services: Services, node: str = NODE) -> None:
    await sql(services, f"INSERT INTO workers (id, host, pid, node) VALUES (gen_random_uuid(), 'h', 1, '{node}')")


async def an_attached_volume(services: Services, state: str = "attached") -> Volume:
    """Insert an attachment and a mount, without a job."""
    volume = await a_stored_volume(services, backend="disk")
    await add_attachment(services, volume, NODE, state)
    await sql(
        services,
        "INSERT INTO mounts (volume_id, node, generation, path, device) VALUES (:id, :node, 1, '/m', '/dev/loop0')",
        id=volume.id,
        node=NODE,
    )
    return volume


async def add_attachment(services: Services, volume: Volume, node: str, state: str = "attached") -> None:
    columns = "id, project_id, volume_id, node, holder, mode, state, generation"
    values = "gen_random_uuid(), :project, :volume, :node, 'one', 'rw', :state, 1"
    names = {"project": volume.project_id, "volume": volume.id, "node": node, "state": state}
    await sql(services, f"INSERT INTO attachments ({columns}) VALUES ({values})", **names)


async def lines(services: Services, host: HostView | None = None) -> list[str]:
    return [str(finding) async for finding in services.check(host).findings(Counter())]


async def rows(services: Services, table: str) -> list[str]:
    column = "state" if table == "attachments" else "node"
    return [row[0] for row in await sql(services, f"SELECT {column} FROM {table}")]


def seeing(*volume_ids: UUID) -> HostView:
    async def found() -> Mapping[UUID, str]:
        return dict.fromkeys(volume_ids, "/mounts/x")

    return HostView(NODE, found)


async def test_attachments_in_order_are_no_findings(services: Services) -> None:
    volume = await an_attached_volume(services)
    coming = await a_stored_volume(services, backend="disk")
    await services.attachments.request_attach(coming.id, NewAttachment(NODE, "one"))

    assert await lines(services, seeing(volume.id)) == []


@pytest.mark.parametrize(
    ("state", "attachments", "mounts"), [("attaching", [], []), ("detaching", ["attached"], [NODE])]
)
async def test_attachment_without_a_job_gets_the_state_that_a_failed_job_leaves(
    services: Services, state: str, attachments: list[str], mounts: list[str]
) -> None:
    volume = await an_attached_volume(services, state)

    [finding] = await run_check(services)
    assert (finding.code, finding.name) == ("no-job", volume.name)
    assert finding.problem == f"of volume {volume.id} is {state}, but no live job attaches or detaches it"
    assert await repair_all(services) == ["no-job"]
    assert (await rows(services, "attachments"), await rows(services, "mounts")) == (attachments, mounts)


@pytest.mark.parametrize("state", ["attaching", "detaching"])
async def test_volume_that_is_held_for_an_attachment_without_a_job_is_released(services: Services, state: str) -> None:
    volume = await an_attached_volume(services, state)
    await sql(services, "UPDATE volumes SET state = :state, job_id = gen_random_uuid()", state=state)

    assert await repair_all(services) == ["no-job", "no-job"]
    assert (await services.volumes.get(volume.id, project_id=volume.project_id)).state == "available"


async def test_mount_without_an_attachment_is_forgotten(services: Services) -> None:
    await an_attached_volume(services)
    await sql(services, "DELETE FROM attachments")

    [line] = await lines(services)
    assert line.startswith("not-attached  volume ")
    assert "is recorded as mounted on node 'web-1', but has no attachment" in line
    assert await repair_all(services) == ["not-attached"]
    assert await rows(services, "mounts") == []


async def test_repair_leaves_what_a_job_has_begun_with_meanwhile(services: Services) -> None:
    volume = await an_attached_volume(services, "detaching")
    check = check_attachments.Attachments(services.database, lease=15)
    found = await check._without_job()
    [(attachment_id,)] = await sql(services, "SELECT id FROM attachments")
    await services.attachments.request_detach(volume.id, attachment_id)

    assert [await repairing() for _, repairing in found] == [False]
    assert await rows(services, "attachments") == ["detaching"]


@pytest.mark.parametrize("agent", ["silent", "forgotten"])
async def test_attachments_on_a_node_that_is_not_seen_are_reported_with_the_way_out(
    services: Services, agent: str
) -> None:
    await an_attached_volume(services)
    silent = "UPDATE workers SET heartbeat_at = now() - interval '1000 s'"
    await sql(services, silent if agent == "silent" else "DELETE FROM workers")

    seen = "was last seen 1000 s ago" if agent == "silent" else "has not been seen for an hour"
    [finding] = await run_check(services)
    assert (finding.code, finding.subject) == ("no-node", "node 'web-1'")
    assert finding.problem == f"has attachments (1), but its agent {seen}"
    assert finding.remedy == "start `cistern node` there, or detach by force"


async def test_volume_on_two_nodes_is_reported(services: Services) -> None:
    volume = await an_attached_volume(services)
    await an_agent(services, "web-2")
    await add_attachment(services, volume, "web-2")

    [line] = await lines(services)
    assert line.startswith(f"two-nodes  volume {volume.id} ({volume.name})  is on the nodes 'web-1', 'web-2' at once")


async def test_host_that_has_other_volumes_than_its_attachments_is_looked_at_twice(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_attachments, "_SECOND_LOOK_SECONDS", 0)
    missing, foreign = await an_attached_volume(services), uuid4()

    not_attached, not_mounted = await lines(services, seeing(foreign))
    assert not_attached.startswith(f"not-attached  volume {foreign}  is on this host at /mounts/x")
    assert not_mounted.startswith(
        f"not-mounted  volume {missing.id} ({missing.name})  is attached to this node, 'web-1'"
    )

    looks = [{foreign: "/m"}, {missing.id: "/m"}]

    async def found() -> Mapping[UUID, str]:
        return looks.pop(0)

    assert await lines(services, HostView(NODE, found)) == []


async def test_volume_whose_attachment_a_job_is_changing_may_be_mounted_or_not(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_attachments, "_SECOND_LOOK_SECONDS", 0)
    volume = await an_attached_volume(services)
    await services.attachments.request_attach(volume.id, NewAttachment(NODE, "one"))

    assert (await lines(services, seeing()), await lines(services, seeing(volume.id))) == ([], [])


async def test_host_that_cannot_be_looked_at_is_unreadable(services: Services) -> None:
    async def found() -> Mapping[UUID, str]:
        raise StorageError("losetup: no such file")

    [line] = await lines(services, HostView(NODE, found))
    assert line == "unreadable  node 'web-1'  losetup: no such file  [repair this host]"
