"""Sizes that no block device can have are rounded, wherever a size enters: up, and a limit down."""

from typing import Any
from uuid import UUID

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from api.schemas.fields import Size, SizeLimit
from api.schemas.schedules import validated_params
from domain.bulk.expand import GrowthPolicy
from domain.db.base import DEFAULT_PROJECT
from domain.errors import ShrinkRefused, SizeLimitExceeded
from domain.volumes.model import BLOCK_BYTES, MAX_SIZE, Growth, rounded_up
from domain.volumes.service import NewVolume
from tests.unit.fakes import FakeServices, snapshot_row, volume_row

V0, V1 = "/api/v0/volumes", "/api/v1/volumes"
MIB = 2**20
ODD = 1000
SIZES = st.integers(1, MAX_SIZE)
PERCENT = st.floats(0.001, 10_000)


@given(SIZES)
def test_requested_size_is_rounded_up_and_a_limit_down(size: int) -> None:
    rounded = TypeAdapter(Size).validate_python(size)

    assert (
        rounded % BLOCK_BYTES,
        NewVolume("new").to_row(backend="a", size=size, job_id=UUID(int=1), project_id=DEFAULT_PROJECT).size,
    ) == (
        0,
        rounded,
    )
    assert 0 <= rounded - size < BLOCK_BYTES
    assert rounded <= MAX_SIZE
    if size >= BLOCK_BYTES:
        limit = TypeAdapter(SizeLimit).validate_python(size)
        assert (limit % BLOCK_BYTES, 0 <= size - limit < BLOCK_BYTES) == (0, True)


@given(SIZES, PERCENT)
def test_growth_by_percent_never_yields_less_than_asked(size: int, percent: float) -> None:
    try:
        grown = Growth(percent=percent).target(size)
    except (ShrinkRefused, SizeLimitExceeded):
        return
    assert grown % BLOCK_BYTES == 0
    assert (grown - size) * 100 >= size * percent * (1 - 1e-12)


@given(SIZES, PERCENT, st.integers(1, 2**40), SIZES)
def test_bulk_growth_by_percent_never_exceeds_its_limit(size: int, percent: float, step: int, up_to: int) -> None:
    new_size = GrowthPolicy(percent=percent, step=step, up_to=up_to).new_size(size, None)

    if isinstance(new_size, int):
        assert (size < new_size <= up_to, new_size % BLOCK_BYTES) == (True, 0)


@pytest.mark.parametrize("size", [MAX_SIZE, MAX_SIZE - 1, "64TiB"])
async def test_maximum_size_can_be_reached(fake: FakeServices, client: httpx.AsyncClient, size: int | str) -> None:
    created = await client.post(V1, json={"name": "large", "size": size})
    volume = fake.volumes.add(volume_row("small"))
    grown = await client.post(f"{V1}/{volume.id}/expand", json={"to": size})

    assert fake.volumes.rows[UUID(created.json()["volume_id"])].size == MAX_SIZE
    assert grown.json()["params"] == {"to_size": MAX_SIZE}
    assert GrowthPolicy(by=MIB).new_size(MAX_SIZE - 1, None) == MAX_SIZE


@pytest.mark.parametrize(
    ("written", "size"), [("4.1GB", 4_100_001_792), (1, 4096), (4096, 4096), ("4097", 8192), ("5 kb", 8192)]
)
async def test_new_volume_has_whole_blocks(
    fake: FakeServices, client: httpx.AsyncClient, written: int | str, size: int
) -> None:
    created = await client.post(V1, json={"name": "one", "size": written})
    waited_for = await client.post(V0, json={"name": "two", "size": written})

    assert fake.volumes.rows[UUID(created.json()["volume_id"])].size == waited_for.json()["size"] == size


@pytest.mark.parametrize(("growth", "to_size"), [({"to": 9000}, 12288), ({"by": 1}, 12288), ({"percent": 33}, 12288)])
async def test_expansion_ends_at_whole_blocks(
    fake: FakeServices, client: httpx.AsyncClient, growth: dict[str, Any], to_size: int
) -> None:
    one, two = fake.volumes.add(volume_row("one")), fake.volumes.add(volume_row("two"))
    accepted = await client.post(f"{V1}/{one.id}/expand", json=growth)
    assert (await client.post(f"{V0}/{two.id}/expand", json=growth)).status_code == 200

    assert accepted.json()["params"] == {"to_size": to_size}
    assert [job.params["to_size"] for job in fake.jobs.rows.values()] == [to_size] * 2


async def test_clone_has_whole_blocks(fake: FakeServices, client: httpx.AsyncClient) -> None:
    snapshot = fake.snapshots.add(snapshot_row(fake.volumes.add(volume_row())))
    body = {"name": "clone", "from_snapshot": str(snapshot.id), "size": 8193}
    cloned = await client.post(V1, json=body)

    assert fake.volumes.rows[UUID(cloned.json()["volume_id"])].size == 12288


async def test_policy_of_a_volume_is_shown_rounded(fake: FakeServices, client: httpx.AsyncClient) -> None:
    volume, policy = fake.volumes.add(volume_row()), {"usage_above": 80, "by": ODD, "up_to": MIB + ODD}
    shown = {"usage_above": 80, "by": 4096, "up_to": MIB}
    patched = await client.patch(f"{V1}/{volume.id}", json={"autogrow": policy})
    created = await client.post(V0, json={"name": "new", "size": ODD, "autogrow": policy})

    assert patched.json()["autogrow"] == created.json()["autogrow"] == shown


@pytest.mark.parametrize("version", [V0, V1])
async def test_bulk_request_is_shown_rounded(fake: FakeServices, client: httpx.AsyncClient, version: str) -> None:
    body = {"by": ODD, "step": 5000, "up_to": MIB + ODD, "ids": [str(UUID(int=1))]}
    job = (await client.post(f"{version}/expand", json=body)).json()

    policy = {name: job["params"]["policy"][name] for name in ("by", "step", "up_to")}
    assert policy == {"by": 4096, "step": 8192, "up_to": MIB}
    assert validated_params("bulk.expand", body) == body | policy, "and so in a schedule"


@pytest.mark.parametrize("growth", [{"to": 5000}, {"by": ODD}, {"percent": 33}, {"percent": 33, "up_to": 9000}])
async def test_dry_run_plans_whole_blocks(
    fake: FakeServices, client: httpx.AsyncClient, growth: dict[str, Any]
) -> None:
    fake.volumes.add(volume_row(size=4096))
    plan = (await client.post(f"{V1}/expand", json=growth | {"step": 1, "dry_run": True})).json()

    assert [item["to_size"] for item in plan["items"]] == [8192]
    assert plan["bytes"] == 4096


@given(st.integers(1, 10 * MIB), st.integers(1, 10 * MIB))
def test_growth_of_an_odd_size_from_before_is_rounded(size: int, by: int) -> None:
    assert Growth(by=by).target(size) == rounded_up(size + by)
