"""Volumes that grow as their own policies say: on real files, by one POST, and through accidents only once."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest

from domain.bulk.expand.policy import BulkExpandRequest, VolumePolicies
from domain.bulk.ledger import Lane
from domain.jobs.model import Job
from domain.services import Services, open_services
from domain.settings import Settings
from domain.storage.context import Fence, Grant
from domain.volumes.service import VolumeChange
from tests.acceptance import journal
from tests.integration.bulk_builders import an_engine, kill_lanes, with_its_lane
from tests.integration.conftest import RunningWorker
from tests.integration.disk_builders import BY_THREE, FIFTH, TO_ELEVEN, a_volume, size
from tests.support.bulk import MIB, add_volumes, ended

EXPAND = "/api/v1/volumes/expand"
AUTOGROW = {"policy": "autogrow", "max_concurrent": 3}


@pytest.fixture
def own_settings(settings: Settings, tmp_path: Path) -> Settings:
    options = f"journal={tmp_path / 'journal'}&fail=@{tmp_path / 'faults'}"
    backends = {"files": f"faulty+file:{tmp_path}/volumes?{options}"}
    return settings.model_copy(update={"backends": backends})


@pytest.fixture
async def services(own_settings: Settings) -> AsyncIterator[Services]:
    async with open_services(own_settings) as services, services.watcher.watching():
        yield services


async def set_policy(services: Services, volume_id: UUID, autogrow: Any) -> None:
    await services.volumes.change(volume_id, VolumeChange(frozenset({"autogrow"}), autogrow=autogrow))


async def ledger(services: Services, job_id: UUID | str) -> dict[UUID, tuple[str, str | None, int | None, int]]:
    """What became of each volume: status, code, the size written down for it, what was measured (MiB)."""
    items = await services.bulk.items(UUID(str(job_id)), None, after=None, limit=100)
    return {
        item.volume_id: (item.status, item.code, item.to_size and item.to_size // MIB, (item.used or 0) // MIB)
        for item in items
    }


def grown(tmp_path: Path) -> list[UUID]:
    """Every volume that was really made larger, as often as it was."""
    entries = journal.read(tmp_path / "journal")
    return sorted(entry.volume_id for entry in entries if (entry.operation, entry.event) == ("expand", "published"))


async def test_the_first_three_grow_and_the_ledger_says_why_the_others_did_not(
    client: httpx.AsyncClient, services: Services, own_settings: Settings, running_worker: RunningWorker, tmp_path: Path
) -> None:
    async with running_worker(own_settings):
        filling = [
            await a_volume(services, f"filling-{n}", own, used=9) for n, own in enumerate((FIFTH, BY_THREE, TO_ELEVEN))
        ]
        roomy = [await a_volume(services, f"roomy-{n}", FIFTH, used=8) for n in range(3)]
        unasked = [await a_volume(services, f"unasked-{n}", None, used=9) for n in range(3)]

        job = (await client.post(EXPAND, json=AUTOGROW, headers={"Prefer": "wait=30"})).json()

        assert (job["status"], job["progress"]["succeeded"], job["progress"]["skipped"]) == ("succeeded", 3, 6)
        grew = {
            volume_id: ("succeeded", "expanded", to, 9) for volume_id, to in zip(filling, (12, 13, 11), strict=True)
        }
        stayed = dict.fromkeys(roomy, ("skipped", "below-threshold", None, 8))
        without = dict.fromkeys(unasked, ("skipped", "no-policy", None, 9))
        assert await ledger(services, job["id"]) == grew | stayed | without
        assert [await size(services, volume_id) for volume_id in filling + roomy + unasked] == [12, 13, 11, *[10] * 6]
        assert grown(tmp_path) == sorted(filling)

        again = (await client.post(EXPAND, json=AUTOGROW, headers={"Prefer": "wait=30"})).json()

    codes = [code for _, code, _, _ in (await ledger(services, again["id"])).values()]
    assert sorted(map(str, codes)) == ["at-limit", *["below-threshold"] * 5, *["no-policy"] * 3]
    assert grown(tmp_path) == sorted(filling), "nothing grew twice"


async def test_a_policy_that_cannot_be_read_and_a_usage_that_cannot_be_measured_stop_no_other_volume(
    client: httpx.AsyncClient, services: Services, own_settings: Settings, running_worker: RunningWorker
) -> None:
    async with running_worker(own_settings):
        fine = await a_volume(services, "fine", FIFTH, used=9)
        absurd = await a_volume(services, "absurd", {"usage_above": "much", "by": [], "up_to": -1}, used=9)
        (unseen,) = await add_volumes(services, 1, backend="gone", autogrow=FIFTH)
        job = (await client.post(EXPAND, json=AUTOGROW, headers={"Prefer": "wait=30"})).json()

    assert job["status"] == "partial"
    assert await ledger(services, job["id"]) == {
        fine: ("succeeded", "expanded", 12, 9),
        absurd: ("failed", "policy-unusable", None, 9),
        unseen: ("skipped", "usage-unknown", None, 0),
    }
    assert [await size(services, volume_id) for volume_id in (fine, absurd)] == [12, 10]


async def test_two_at_once_grow_each_volume_once(
    services: Services, own_settings: Settings, running_worker: RunningWorker, tmp_path: Path
) -> None:
    async with running_worker(own_settings):
        filling = [await a_volume(services, f"filling-{n}", FIFTH, used=9) for n in range(5)]
        both = [await services.expansion.request_expand(BulkExpandRequest(VolumePolicies())) for _ in range(2)]
        jobs = [await ended(services, job) for job in both]

    assert [job.status for job in jobs] == ["succeeded"] * 2
    assert [await size(services, volume_id) for volume_id in filling] == [12] * 5
    assert grown(tmp_path) == sorted(filling)


async def taken_and_grown_by_a_lane_that_dies(services: Services, *, grows: bool) -> Job:
    """A bulk job whose lane has written the sizes down, and perhaps grown the volumes, and recorded nothing."""
    job, claim = await with_its_lane(services, an_engine(services), VolumePolicies())
    lane = Lane.from_job(claim.job)
    items = await services.chunks.claim(lane, 10)
    tasks = await services.chunks.acquire(lane, items, await services.chunks.measure(lane, items))
    grant = Grant(claim.job.id, Fence(0, 0), claim.deadline)
    assert [await services.chunks.perform(lane, task, grant) is not None for task in tasks if grows] == [True] * grows
    await kill_lanes(services, job)
    return job


@pytest.mark.parametrize("grows", [False, True])
@pytest.mark.parametrize("changed", [None, {"usage_above": 0, "by": 5 * MIB, "up_to": 100 * MIB}], ids=["none", "more"])
async def test_a_lane_that_died_is_replayed_with_the_size_that_it_wrote_down(
    services: Services,
    own_settings: Settings,
    running_worker: RunningWorker,
    changed: dict[str, Any] | None,
    *,
    grows: bool,
) -> None:
    async with running_worker(own_settings):
        volume_id = await a_volume(services, "filling", FIFTH, used=9)
    job = await taken_and_grown_by_a_lane_that_dies(services, grows=grows)
    await set_policy(services, volume_id, changed)

    async with running_worker(own_settings):
        job = await ended(services, job)

    assert (job.status, await ledger(services, job.id)) == (
        "succeeded",
        {volume_id: ("succeeded", "expanded", 12, 9)},
    )
    assert await size(services, volume_id) == 12


async def test_a_retry_grows_to_the_size_that_was_written_down(
    services: Services, own_settings: Settings, running_worker: RunningWorker, tmp_path: Path
) -> None:
    async with running_worker(own_settings):
        volume_id = await a_volume(services, "filling", FIFTH, used=9)
        (tmp_path / "faults").write_text("expand:storage-full\n")
        job = await ended(services, await services.expansion.request_expand(BulkExpandRequest(VolumePolicies())))
        assert await ledger(services, job.id) == {volume_id: ("failed", "storage-full", 12, 9)}
        (tmp_path / "faults").write_text("")
        await set_policy(services, volume_id, None)

        retry = await ended(services, await services.jobs.retry(job.id))

    assert (retry.status, await size(services, volume_id)) == ("succeeded", 12)


async def test_a_dry_run_plans_by_each_volumes_own_policy_and_leaves_no_trace(
    client: httpx.AsyncClient, services: Services
) -> None:
    (filling,) = await add_volumes(services, 1, backend="files", size=10 * MIB, used=9 * MIB, autogrow=FIFTH)
    plan = (await client.post(EXPAND, json=AUTOGROW | {"dry_run": True})).json()

    assert [(item["volume_id"], item["to_size"]) for item in plan["items"]] == [(str(filling), 12 * MIB)]
    assert (plan["grows"], (await client.get("/api/v1/jobs")).json()["items"]) == (1, [])
