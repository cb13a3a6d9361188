"""The autogrow policy of a volume: created, returned, removed; invalid ones are rejected."""

from typing import Any

import httpx
import pytest

from tests.unit.fakes import FakeServices, volume_row

VOLUMES = "/api/v1/volumes"


def invalid_fields(response: httpx.Response) -> list[str]:
    assert (response.status_code, response.json()["code"]) == (422, "invalid"), response.text
    return [error["field"] for error in response.json()["errors"]]


@pytest.mark.parametrize("usage_above", [0, 0.5, 80, 100])
async def test_autogrow_policy_is_created_returned_and_removed(client: httpx.AsyncClient, usage_above: float) -> None:
    policy = {"usage_above": usage_above, "by": "1GiB", "up_to": "1TiB"}
    response = await client.post(VOLUMES, json={"name": "a", "size": 1, "autogrow": policy})
    assert response.status_code == 202, response.text

    path = f"{VOLUMES}/{response.json()['volume_id']}"
    autogrow = (await client.get(path)).json()["autogrow"]
    assert autogrow == {"usage_above": usage_above, "by": 2**30, "up_to": 2**40}
    assert (await client.patch(path, json={"autogrow": None})).json()["autogrow"] is None
    assert (await client.get(path)).json()["autogrow"] is None


async def test_policy_may_watch_inodes_and_keep_growths_apart(fake: FakeServices, client: httpx.AsyncClient) -> None:
    volume = fake.volumes.add(volume_row())
    policy = {"usage_above": 80, "by": 4096, "up_to": 2**30, "inodes_above": 90, "cooldown_seconds": 3600}
    response = await client.patch(f"{VOLUMES}/{volume.id}", json={"autogrow": policy})

    assert (response.status_code, volume.autogrow, response.json()["autogrow"]) == (200, policy, policy)


BAD_AUTOGROWS: list[tuple[dict[str, Any], str]] = [
    ({"up_to": None}, "autogrow.up_to"),
    ({"up_to": 0}, "autogrow.up_to"),
    ({"up_to": 4095}, "autogrow.up_to"),
    ({"up_to": "65TiB"}, "autogrow.up_to"),
    ({"usage_above": None}, "autogrow.usage_above"),
    ({"usage_above": -1}, "autogrow.usage_above"),
    ({"usage_above": 100.1}, "autogrow.usage_above"),
    ({"usage_above": "80"}, "autogrow.usage_above"),
    ({"inodes_above": -1}, "autogrow.inodes_above"),
    ({"inodes_above": 101}, "autogrow.inodes_above"),
    ({"inodes_above": None}, "autogrow.inodes_above"),
    ({"cooldown_seconds": 0}, "autogrow.cooldown_seconds"),
    ({"cooldown_seconds": 1.5}, "autogrow.cooldown_seconds"),
    ({"cooldown_seconds": 366 * 24 * 3600 + 1}, "autogrow.cooldown_seconds"),
    ({"by": 0}, "autogrow.by"),
    ({"by": None}, "autogrow.by"),
    ({"percent": 1}, "autogrow.percent"),
    ({"to": 1}, "autogrow.to"),
    ({"note": "a"}, "autogrow.note"),
]


@pytest.mark.parametrize(("members", "field"), BAD_AUTOGROWS, ids=lambda value: repr(value)[:40])
@pytest.mark.parametrize("method", ["POST", "PATCH"])
async def test_invalid_autogrow_member_is_rejected_with_its_path(
    fake: FakeServices, client: httpx.AsyncClient, method: str, members: dict[str, Any], field: str
) -> None:
    volume = fake.volumes.add(volume_row())
    path, body = (VOLUMES, {"name": "b", "size": 1}) if method == "POST" else (f"{VOLUMES}/{volume.id}", {})
    policy = {"usage_above": 80, "by": 1, "up_to": "1TiB"} | members
    response = await client.request(method, path, json=body | {"autogrow": policy})

    assert invalid_fields(response) == [field]
    assert (volume.autogrow, len(fake.volumes.rows)) == (None, 1)


@pytest.mark.parametrize(
    ("policy", "field"),
    [
        ({"usage_above": 80, "by": 1}, "autogrow.up_to"),
        ({"by": 1, "up_to": "1GiB"}, "autogrow.usage_above"),
        ({"usage_above": 80, "up_to": "1GiB"}, "autogrow"),
        ({"usage_above": 80, "percent": 0, "up_to": "1GiB"}, "autogrow.percent"),
        ({"usage_above": 80, "percent": 1e308, "up_to": "1GiB"}, "autogrow.percent"),
    ],
)
async def test_incomplete_autogrow_policy_is_rejected(
    fake: FakeServices, client: httpx.AsyncClient, policy: dict[str, Any], field: str
) -> None:
    response = await client.post(VOLUMES, json={"name": "b", "size": 1, "autogrow": policy})

    assert invalid_fields(response) == [field]
    assert not fake.volumes.rows
