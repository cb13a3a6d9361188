"""The policy by which a volume may grow by itself: how it is set, shown and removed, and what is no policy."""

from typing import Any

import httpx
import pytest

from tests.unit.fakes import FakeServices, volume_row

VOLUMES = "/api/v1/volumes"


def refused(answer: httpx.Response) -> list[str]:
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid"), answer.text
    return [error["field"] for error in answer.json()["errors"]]


@pytest.mark.parametrize("usage_above", [0, 0.5, 80, 100])
async def test_a_policy_is_set_with_the_volume_shown_and_removed(client: httpx.AsyncClient, usage_above: float) -> None:
    policy = {"usage_above": usage_above, "by": "1GiB", "up_to": "1TiB"}
    answer = await client.post(VOLUMES, json={"name": "a", "size": 1, "autogrow": policy})
    assert answer.status_code == 202, answer.text

    address = f"{VOLUMES}/{answer.json()['volume_id']}"
    shown = (await client.get(address)).json()["autogrow"]
    assert shown == {"usage_above": usage_above, "by": 2**30, "up_to": 2**40}
    assert (await client.patch(address, json={"autogrow": None})).json()["autogrow"] is None
    assert (await client.get(address)).json()["autogrow"] is None


BAD_AUTOGROWS: list[tuple[dict[str, Any], str]] = [
    ({"up_to": None}, "autogrow.up_to"),
    ({"up_to": 0}, "autogrow.up_to"),
    ({"up_to": "65TiB"}, "autogrow.up_to"),
    ({"usage_above": None}, "autogrow.usage_above"),
    ({"usage_above": -1}, "autogrow.usage_above"),
    ({"usage_above": 100.1}, "autogrow.usage_above"),
    ({"usage_above": "80"}, "autogrow.usage_above"),
    ({"by": 0}, "autogrow.by"),
    ({"by": None}, "autogrow.by"),
    ({"percent": 1}, "autogrow.percent"),
    ({"to": 1}, "autogrow.to"),
    ({"note": "a"}, "autogrow.note"),
]


@pytest.mark.parametrize(("said", "field"), BAD_AUTOGROWS, ids=lambda value: repr(value)[:40])
@pytest.mark.parametrize("method", ["POST", "PATCH"])
async def test_a_bad_policy_is_refused_by_name(
    fake: FakeServices, client: httpx.AsyncClient, method: str, said: dict[str, Any], field: str
) -> None:
    volume = fake.volumes.add(volume_row())
    address, plain = (VOLUMES, {"name": "b", "size": 1}) if method == "POST" else (f"{VOLUMES}/{volume.id}", {})
    policy = {"usage_above": 80, "by": 1, "up_to": "1TiB"} | said
    answer = await client.request(method, address, json=plain | {"autogrow": policy})

    assert refused(answer) == [field]
    assert (volume.autogrow, len(fake.volumes.rows)) == (None, 1)


@pytest.mark.parametrize(
    ("policy", "field"),
    [
        ({"usage_above": 80, "by": 1}, "autogrow.up_to"),
        ({"by": 1, "up_to": 1}, "autogrow.usage_above"),
        ({"usage_above": 80, "up_to": 1}, "autogrow"),
        ({"usage_above": 80, "percent": 0, "up_to": 1}, "autogrow.percent"),
        ({"usage_above": 80, "percent": 1e308, "up_to": 1}, "autogrow.percent"),
    ],
)
async def test_a_policy_that_leaves_something_open_is_refused(
    fake: FakeServices, client: httpx.AsyncClient, policy: dict[str, Any], field: str
) -> None:
    answer = await client.post(VOLUMES, json={"name": "b", "size": 1, "autogrow": policy})

    assert refused(answer) == [field]
    assert not fake.volumes.rows
