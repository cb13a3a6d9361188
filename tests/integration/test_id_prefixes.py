"""Lists of what has an id that begins with certain digits, and of volumes by their ids."""

from uuid import UUID

import httpx
import pytest

from domain.services import Services
from domain.snapshots.model import Snapshot
from domain.volumes.model import Volume
from tests.integration.job_builders import a_queued_expand, a_volume, sql
from tests.integration.schedule_builders import made

ONE, TWO = UUID("01a0b1c2-0000-7000-8000-00000000000f"), UUID("01a0b1c3-ffff-7fff-bfff-ffffffffffff")


async def of_each_kind(services: Services, client: httpx.AsyncClient, path: str) -> None:
    """Make two objects of the kind that ``path`` lists, with the ids `ONE` and `TWO`."""
    for number, identity in enumerate((ONE, TWO)):
        if path == "schedules":
            made_id = (await made(client, name=f"n{number}"))["id"]
        elif path == "jobs":
            made_id = (await a_queued_expand(services)).id
        else:
            volume = await a_volume(services)
            made_id = volume.id
            if path == "snapshots":
                made_id = await a_snapshot(services, volume)
        await sql(services, f"UPDATE {path} SET id = :new WHERE id = :old", new=identity, old=made_id)


async def a_snapshot(services: Services, volume: Volume) -> UUID:
    columns = {"state": "ready", "size": volume.size, "version": 1, "project_id": volume.project_id}
    async with services.database.transaction() as session:
        session.add(Snapshot(id=UUID(int=1), volume_id=volume.id, name="one", **columns))
    return UUID(int=1)


@pytest.mark.parametrize("path", ["volumes", "snapshots", "jobs", "schedules"])
async def test_objects_are_found_by_the_beginning_of_their_ids(
    services: Services, client: httpx.AsyncClient, path: str
) -> None:
    await of_each_kind(services, client, path)
    found = {}
    for prefix in (
        "01a0b1c",
        "01a0b1c2",
        "01a0b1C3-FFFF-7fff-bfff-ffffffffffff",
        "01a0b1c2-00007",
        "01a0b1c4",
        "f" * 36,
    ):
        response = await client.get(f"/api/v1/{path}", params={"id_prefix": prefix})
        found[prefix] = [UUID(one["id"]) for one in response.json()["items"]]

    assert [*found.values()] == [[TWO, ONE], [ONE], [TWO], [ONE], [], []]


@pytest.mark.parametrize("prefix", ["", "-", "g", "01a0b1c2_", "0" * 37])
async def test_what_is_no_beginning_of_an_id_is_refused(client: httpx.AsyncClient, prefix: str) -> None:
    response = await client.get("/api/v1/volumes", params={"id_prefix": prefix})

    assert (response.status_code, response.json()["errors"][0]["field"]) == (422, "id_prefix")


async def test_volumes_are_found_by_their_ids(services: Services, client: httpx.AsyncClient) -> None:
    one, _, three = [await a_volume(services) for _ in range(3)]
    response = await client.get("/api/v1/volumes", params={"id": [str(one.id), str(three.id), str(ONE)]})

    assert [found["name"] for found in response.json()["items"]] == [three.name, one.name]
    too_many = await client.get("/api/v1/volumes", params={"id": [str(UUID(int=number)) for number in range(101)]})
    assert too_many.status_code == 422
