"""Routes of projects, and the project that a request acts in."""

import httpx
import pytest

from domain.access.model import Role
from domain.db.base import DEFAULT_PROJECT
from tests.unit.fake_keys import bearer
from tests.unit.fakes import FakeServices

PROJECTS = "/api/v1/projects"


async def test_projects_are_created_listed_and_limited(client: httpx.AsyncClient) -> None:
    created = await client.post(PROJECTS, json={"name": "search", "max_volumes": 3})
    project = created.json()
    limited = await client.patch(f"{PROJECTS}/{project['id']}", json={"max_volumes": None, "max_bytes": 4096})
    listed = (await client.get(PROJECTS)).json()["items"]

    assert (created.status_code, project["max_volumes"], project["max_bytes"]) == (201, 3, None)
    assert project["usage"] == {"volumes": 0, "bytes": 0, "snapshots": 0, "queued_jobs": 0}
    assert (limited.json()["max_volumes"], limited.json()["max_bytes"]) == (None, 4096)
    assert [one["name"] for one in listed] == ["search", "default"]


async def test_name_of_a_project_is_free_once(client: httpx.AsyncClient) -> None:
    answer = await client.post(PROJECTS, json={"name": "default"})

    assert (answer.status_code, answer.json()["code"]) == (409, "name-taken")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "name"),
        ({"name": "Search"}, "name"),
        ({"name": ""}, "name"),
        ({"name": "a" * 65}, "name"),
        ({"name": "a b"}, "name"),
        ({"name": "a", "max_volumes": -1}, "max_volumes"),
        ({"name": "a", "max_volumes": 1.5}, "max_volumes"),
        ({"name": "a", "max_bytes": "much"}, "max_bytes"),
        ({"name": "a", "max_bytes": 2**63}, "max_bytes"),
        ({"name": "a", "max_snapshots": 2**63}, "max_snapshots"),
        ({"name": "a", "max_jobs": 1}, "max_jobs"),
    ],
)
async def test_invalid_project_is_rejected_with_its_field(
    client: httpx.AsyncClient, body: dict[str, object], field: str
) -> None:
    answer = await client.post(PROJECTS, json=body)

    assert (answer.status_code, [error["field"] for error in answer.json()["errors"]]) == (422, [field])


async def test_limit_of_bytes_may_be_text_and_is_not_rounded(client: httpx.AsyncClient) -> None:
    limits = {}
    for number, size in enumerate(("1.5TiB", 5000, "4097B", None)):
        answer = await client.post(PROJECTS, json={"name": f"p{number}", "max_bytes": size})
        limits[size] = answer.json()["max_bytes"]

    assert limits == {"1.5TiB": 3 * 2**39, 5000: 5000, "4097B": 4097, None: None}


async def test_unknown_project_is_not_found(client: httpx.AsyncClient) -> None:
    path = f"{PROJECTS}/00000000-0000-7000-8000-00000000000f"
    answers = [await client.get(path), await client.patch(path, json={})]

    assert [(answer.status_code, answer.json()["code"]) for answer in answers] == [(404, "project-not-found")] * 2


@pytest.mark.parametrize("role", [role for role in Role if role is not Role.SYSTEM])
async def test_only_system_keys_see_other_projects(client: httpx.AsyncClient, role: Role) -> None:
    other = (await client.post(PROJECTS, json={"name": "other"})).json()
    listed = await client.get(PROJECTS, headers=bearer(role))
    got = await client.get(f"{PROJECTS}/{other['id']}", headers=bearer(role))
    named = await client.get("/api/v1/volumes", headers={**bearer(role), "Cistern-Project": "other"})

    assert [project["id"] for project in listed.json()["items"]] == [str(DEFAULT_PROJECT)]
    assert (got.status_code, named.status_code) == (404, 404)


async def test_hot_route_answers_in_the_project_that_is_named(fake: FakeServices, client: httpx.AsyncClient) -> None:
    """A system key names it in a header, also where no route of FastAPI's is reached."""
    await client.post(PROJECTS, json={"name": "other"})
    accepted = await client.post("/api/v1/volumes", json={"name": "a", "size": 4096})
    path = accepted.headers["Location"]
    own = await client.get(path)
    foreign = await client.get(path, headers={"Cistern-Project": "other"})

    assert (own.status_code, foreign.status_code) == (200, 404)


async def test_key_is_for_the_project_in_which_it_is_made(client: httpx.AsyncClient) -> None:
    owner = bearer(Role.OWNER)
    made = await client.post("/api/v1/keys", json={"name": "me", "role": "viewer"}, headers=owner)
    too_much = await client.post("/api/v1/keys", json={"name": "me", "role": "system"}, headers=owner)

    assert (made.status_code, made.json()["project_id"]) == (201, str(DEFAULT_PROJECT))
    assert (too_much.status_code, too_much.json()["code"]) == (403, "role-insufficient")
