"""Volumes that grow by their own policies: on real files, by one POST, and only once in spite of faults."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest

from domain.bulk.expand import BulkExpandRequest, VolumePolicies
from domain.bulk.model import Lane
from domain.db.base import DEFAULT_PROJECT
from domain.jobs.model import Job
from domain.services import Services, open_services
from domain.settings import Settings
from domain.storage.context import Fence, Grant
from tests.acceptance import journal
from tests.integration.bulk_builders import a_claimed_lane, an_engine, kill_lanes
from tests.integration.conftest import RunningWorker
from tests.integration.disk_builders import BY_THREE, FIFTH, TO_ELEVEN, a_volume, size
from tests.support.bulk import MIB, add_volumes, ended

EXPAND = "/api/v1/volumes/expand"
AUTOGROW = {"policy": "autogrow", "max_concurrent": 3}


@pytest.fixture
def own_settings(settings: Settings, tmp_path: Path) -> Settings:
    options = f"journal={tmp_path / 'journal'}&fail=@{tmp_path / 'faults'}"
    backends = {"files": f"faulty+file:{tmp_path}/volumes?{options}", "unmeasured": "null:"}
    return settings.model_copy(update={"backends": backends})


@pytest.fixture
async def services(own_settings: Settings) -> AsyncIterator[Services]:
    async with open_services(own_settings, adopt=True) as services, services.watcher.watching():
        yield services


async def set_policy(services: Services, volume_id: UUID, autogrow: Any) -> None:
    await services.volumes.change(volume_id, {"autogrow": autogrow})


async def ledger(services: Services, job_id: UUID | str) -> dict[UUID, tuple[str, str | None, int | None, int]]:
    """The ledger by volume id: status, code, stored size and measured usage in MiB."""
    items = await services.bulk.items(UUID(str(job_id)), None, after=None, limit=100, project_id=DEFAULT_PROJECT)
    return {
        item.volume_id: (item.status, item.code, item.to_size and item.to_size // MIB, (item.used or 0) // MIB)
        for item in items
    }


def grown(tmp_path: Path) -> list[UUID]:
    """The volumes expanded on the backend, one entry for each time."""
    entries = journal.read(tmp_path / "journal")
    return sorted(entry.volume_id for entry in entries if (entry.operation, entry.event) == ("expand", "published"))


async def test_filling_volumes_grow_and_the_ledger_has_the_reason_for_the_others(
    client: httpx.AsyncClient, services: Services, own_settings: Settings, running_worker: RunningWorker, tmp_path: Path
) -> None:
    async with running_worker(own_settings):
        filling = [
            await a_volume(services, f"filling-{n}", own, used=9) for n, own in enumerate((FIFTH, BY_THREE, TO_ELEVEN))
        ]
        roomy = [await a_volume(services, f"roomy-{n}", FIFTH, used=8) for n in range(3)]
        without_policy = [await a_volume(services, f"without_policy-{n}", None, used=9) for n in range(3)]

        job = (await client.post(EXPAND, json=AUTOGROW, headers={"Prefer": "wait=30"})).json()

        assert (job["status"], job["progress"]["succeeded"], job["progress"]["skipped"]) == ("succeeded", 3, 6)
        grew = {
            volume_id: ("succeeded", "expanded", to, 9) for volume_id, to in zip(filling, (12, 13, 11), strict=True)
        }
        stayed = dict.fromkeys(roomy, ("skipped", "below-threshold", None, 8))
        no_policy = dict.fromkeys(without_policy, ("skipped", "no-policy", None, 9))
        assert await ledger(services, job["id"]) == grew | stayed | no_policy
        assert [await size(services, volume_id) for volume_id in filling + roomy + without_policy] == [
            12,
            13,
            11,
            *[10] * 6,
        ]
        assert grown(tmp_path) == sorted(filling)

        repeated = (await client.post(EXPAND, json=AUTOGROW, headers={"Prefer": "wait=30"})).json()

    codes = [code for _, code, _, _ in (await ledger(services, repeated["id"])).values()]
    assert sorted(map(str, codes)) == ["at-limit", *["below-threshold"] * 5, *["no-policy"] * 3]
    assert grown(tmp_path) == sorted(filling), "nothing grew twice"


async def test_unusable_policy_and_unknown_usage_affect_no_other_volume(
    client: httpx.AsyncClient, services: Services, own_settings: Settings, running_worker: RunningWorker
) -> None:
    async with running_worker(own_settings):
        fine = await a_volume(services, "fine", FIFTH, used=9)
        unusable = await a_volume(services, "unusable", {"usage_above": "much", "by": [], "up_to": -1}, used=9)
        (unmeasured,) = await add_volumes(services, 1, backend="unmeasured", autogrow=FIFTH)
        job = (await client.post(EXPAND, json=AUTOGROW, headers={"Prefer": "wait=30"})).json()

    assert job["status"] == "partial"
    assert await ledger(services, job["id"]) == {
        fine: ("succeeded", "expanded", 12, 9),
        unusable: ("failed", "policy-unusable", None, 9),
        unmeasured: ("skipped", "usage-unknown", None, 0),
    }
    assert [await size(services, volume_id) for volume_id in (fine, unusable)] == [12, 10]


async def test_concurrent_bulk_jobs_grow_each_volume_once(
    services: Services, own_settings: Settings, running_worker: RunningWorker, tmp_path: Path
) -> None:
    async with running_worker(own_settings):
        filling = [await a_volume(services, f"filling-{n}", FIFTH, used=9) for n in range(5)]
        accepted = [await services.bulk.request(BulkExpandRequest(VolumePolicies())) for _ in range(2)]
        jobs = [await ended(services, job) for job in accepted]

    assert [job.status for job in jobs] == ["succeeded"] * 2
    assert [await size(services, volume_id) for volume_id in filling] == [12] * 5
    assert grown(tmp_path) == sorted(filling)


async def acquired_by_a_dead_lane(services: Services, *, grows: bool) -> Job:
    """A bulk job whose lane stored the sizes, expanded the volumes if ``grows``, and died before recording."""
    job, claim = await a_claimed_lane(services, an_engine(services), VolumePolicies())
    chunks = services.bulk.lane_steps(Lane.from_job(claim.job))
    all_work = (await chunks.claim_next(10)).work
    grant = Grant(claim.job.id, Fence(0, 0), claim.deadline)
    assert [await chunks.operation.work_on(work, grant) is not None for work in all_work if grows] == [True] * grows
    await kill_lanes(services, job)
    return job


@pytest.mark.parametrize("grows", [False, True])
@pytest.mark.parametrize("changed", [None, {"usage_above": 0, "by": 5 * MIB, "up_to": 100 * MIB}], ids=["none", "more"])
async def test_items_of_a_dead_lane_are_completed_with_their_stored_sizes(
    services: Services,
    own_settings: Settings,
    running_worker: RunningWorker,
    changed: dict[str, Any] | None,
    *,
    grows: bool,
) -> None:
    async with running_worker(own_settings):
        volume_id = await a_volume(services, "filling", FIFTH, used=9)
    job = await acquired_by_a_dead_lane(services, grows=grows)
    await set_policy(services, volume_id, changed)

    async with running_worker(own_settings):
        job = await ended(services, job)

    assert (job.status, await ledger(services, job.id)) == (
        "succeeded",
        {volume_id: ("succeeded", "expanded", 12, 9)},
    )
    assert await size(services, volume_id) == 12


async def test_retry_grows_to_the_stored_size(
    services: Services, own_settings: Settings, running_worker: RunningWorker, tmp_path: Path
) -> None:
    async with running_worker(own_settings):
        volume_id = await a_volume(services, "filling", FIFTH, used=9)
        (tmp_path / "faults").write_text("expand:storage-full\n")
        job = await ended(services, await services.bulk.request(BulkExpandRequest(VolumePolicies())))
        assert await ledger(services, job.id) == {volume_id: ("failed", "storage-full", 12, 9)}
        (tmp_path / "faults").write_text("")
        await set_policy(services, volume_id, None)

        retry = await ended(services, await services.jobs.retry(job.id))

    assert (retry.status, await size(services, volume_id)) == ("succeeded", 12)


async def test_dry_run_plans_by_each_volumes_policy_and_creates_no_job(
    client: httpx.AsyncClient, services: Services
) -> None:
    (filling,) = await add_volumes(services, 1, backend="files", size=10 * MIB, used=9 * MIB, autogrow=FIFTH)
    plan = (await client.post(EXPAND, json=AUTOGROW | {"dry_run": True})).json()

    assert [(item["volume_id"], item["to_size"]) for item in plan["items"]] == [(str(filling), 12 * MIB)]
    assert (plan["grows"], (await client.get("/api/v1/jobs")).json()["items"]) == (1, [])
