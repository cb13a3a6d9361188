"""Requests for snapshot operations, and the rows before, during and after them."""

from uuid import UUID, uuid4

import pytest

from domain.audit.model import Actor
from domain.db.base import DEFAULT_PROJECT
from domain.db.pagination import PageRequest
from domain.errors import (
    Invalid,
    NameTaken,
    SnapshotBusy,
    SnapshotNotFound,
    SnapshotUnusable,
    UnknownBackend,
    VolumeBusy,
    VolumeHasSnapshots,
    VolumeNotFound,
    VolumeUnusable,
)
from domain.jobs.acceptance import IdempotentReplay, IdempotentRequest, RequestOrigin
from domain.jobs.attempt import Cancelled, ClaimedJob
from domain.operations import SnapshotState
from domain.services import Services, open_services
from domain.settings import Settings
from domain.snapshots.repository import SnapshotFilter
from domain.volumes.model import Growth
from domain.volumes.service import NewVolume
from tests.integration.job_builders import MIB, a_volume, an_engine, set_job, sql, volume_row
from tests.integration.snapshot_builders import (
    OPERATIONS,
    a_snapshot,
    a_stored_volume,
    all_rows,
    attempted,
    carried_out,
    claimed,
    given_up,
    names,
    requested,
    snapshot_row,
    states,
)


class TestTake:
    async def test_request_creates_snapshot_and_job_and_acquires_the_volume(self, services: Services) -> None:
        volume = await a_volume(services, size=3 * MIB)
        job = await services.snapshots.request_take(volume.id, "first", origin=RequestOrigin(Actor("me")))
        snapshot, found = await snapshot_row(services, job.snapshot_id), await volume_row(services, volume.id)

        assert (snapshot["state"], snapshot["size"], snapshot["version"]) == ("taking", 3 * MIB, 1)
        assert (found["state"], found["version"]) == ("snapshotting", 2)
        assert {snapshot["job_id"], found["job_id"]} == {job.id}
        assert (job.kind, job.volume_id, job.backend, job.created_by) == ("snapshot.take", volume.id, "memory", "me")
        assert job.params == {
            "name": "first",
            "size": 3 * MIB,
            "of_volume": str(volume.id),
            "fence_version": 1,
            "allow_torn": False,
            "attached": False,
        }

    async def test_success_makes_the_snapshot_ready_and_the_volume_available(self, services: Services) -> None:
        volume = await a_stored_volume(services, size=2 * MIB)
        job = await carried_out(services, await services.snapshots.request_take(volume.id, "first"))
        snapshot, found = await snapshot_row(services, job.snapshot_id), await volume_row(services, volume.id)

        assert (snapshot["state"], snapshot["size"], snapshot["version"]) == ("ready", 2 * MIB, 2)
        assert (found["state"], found["size"], found["version"], found["job_id"]) == ("available", 2 * MIB, 3, None)
        ids = {"snapshot_id": str(job.snapshot_id), "volume_id": str(volume.id)}
        assert job.result == {**ids, "size": 2 * MIB, "consistency": "crash"}
        assert snapshot["consistency"] == "crash"

    async def test_backend_without_sizes_takes_snapshots_of_the_rows_size(self, settings: Settings) -> None:
        async with open_services(settings.model_copy(update={"backends": {"null": "null:"}}), adopt=True) as services:
            volume = await a_volume(services, size=5 * MIB, backend="null")
            job = await carried_out(services, await services.snapshots.request_take(volume.id, "first"))

            assert (await snapshot_row(services, job.snapshot_id))["size"] == 5 * MIB
            assert job.result is not None
            assert job.result["size"] == 5 * MIB

    async def test_name_is_unique_per_volume(self, services: Services) -> None:
        one, other = await a_stored_volume(services), await a_stored_volume(services)
        await carried_out(services, await services.snapshots.request_take(one.id, "same"))
        await services.snapshots.request_take(other.id, "same")
        before = await all_rows(services)
        with pytest.raises(NameTaken, match="'same'") as refused:
            await services.snapshots.request_take(one.id, "same")

        assert refused.value.details == {"field": "name"}
        assert await all_rows(services) == before

    async def test_busy_failed_or_missing_volume_is_refused(self, services: Services) -> None:
        volume = await a_volume(services)
        job = await services.volumes.request_expand(volume.id, Growth(by=1))
        with pytest.raises(VolumeBusy) as refused:
            await services.snapshots.request_take(volume.id, "late")
        assert refused.value.details["job_id"] == job.id
        await sql(services, "UPDATE volumes SET state = 'error', job_id = NULL")
        with pytest.raises(VolumeUnusable):
            await services.snapshots.request_take(volume.id, "late")
        with pytest.raises(VolumeNotFound):
            await services.snapshots.request_take(uuid4(), "nowhere")

    async def test_retry_takes_the_current_volume_not_the_leftovers(self, services: Services) -> None:
        volume = await a_stored_volume(services)
        job = await services.snapshots.request_take(volume.id, "first")
        engine, own = await claimed(services, job)
        await attempted(services, own)
        await engine.settle(own, Cancelled({"size": MIB}))
        await carried_out(services, await services.volumes.request_expand(volume.id, Growth(to=4 * MIB)))
        retried = await carried_out(services, await services.jobs.retry(job.id))

        assert retried.result is not None
        assert retried.result["size"] == 4 * MIB
        assert (await snapshot_row(services, job.snapshot_id))["size"] == 4 * MIB

    async def test_same_key_creates_one_snapshot(self, services: Services) -> None:
        volume = await a_volume(services)
        origin = RequestOrigin(
            Actor("me"), IdempotentRequest("k", "route", "fingerprint", lambda job: (202, {"id": str(job.id)}))
        )
        job = await services.snapshots.request_take(volume.id, "first", origin=origin)
        with pytest.raises(IdempotentReplay) as replay:
            await services.snapshots.request_take(volume.id, "first", origin=origin)

        assert replay.value.body == {"id": str(job.id)}
        assert await sql(services, "SELECT count(*) FROM snapshots") == [(1,)]


class TestRestore:
    async def test_volume_and_snapshot_are_acquired_and_the_fence_is_the_volumes(self, services: Services) -> None:
        volume = await a_stored_volume(services)
        await sql(services, "UPDATE volumes SET version = 7")
        snapshot = await a_snapshot(services, volume)
        job = await services.snapshots.request_restore(snapshot.id)

        assert await states(services, job) == ("restoring", "restoring")
        assert (job.volume_id, job.snapshot_id, job.params["fence_version"]) == (volume.id, snapshot.id, 8)

    async def test_volume_keeps_its_current_size(self, services: Services) -> None:
        volume = await a_stored_volume(services)
        snapshot = await a_snapshot(services, volume)
        await carried_out(services, await services.volumes.request_expand(volume.id, Growth(to=4 * MIB)))
        job = await carried_out(services, await services.snapshots.request_restore(snapshot.id))

        assert await states(services, job) == ("available", "ready")
        assert (await volume_row(services, volume.id))["size"] == 4 * MIB
        assert job.result == {"snapshot_id": str(snapshot.id), "volume_id": str(volume.id), "size": 4 * MIB}

    async def test_other_operations_are_refused_meanwhile(self, services: Services) -> None:
        volume = await a_stored_volume(services)
        snapshot = await a_snapshot(services, volume)
        job = await services.snapshots.request_restore(snapshot.id)
        before = await all_rows(services)
        with pytest.raises(VolumeBusy):
            await services.snapshots.request_restore(snapshot.id)
        with pytest.raises(SnapshotBusy) as not_deleted:
            await services.snapshots.request_delete(snapshot.id)
        with pytest.raises(SnapshotBusy) as not_cloned:
            await services.snapshots.request_clone(snapshot.id, NewVolume("clone"))

        assert {not_deleted.value.details["job_id"], not_cloned.value.details["job_id"]} == {job.id}
        assert await all_rows(services) == before


class TestDelete:
    async def test_volume_is_not_acquired_and_can_be_expanded_meanwhile(self, services: Services) -> None:
        volume = await a_stored_volume(services)
        snapshot = await a_snapshot(services, volume)
        before = await volume_row(services, volume.id)
        job = await services.snapshots.request_delete(snapshot.id)
        assert await volume_row(services, volume.id) == before
        expand = await services.volumes.request_expand(volume.id, Growth(by=MIB))

        assert (job.volume_id, job.snapshot_id, job.backend) == (None, snapshot.id, "memory")
        assert job.params == {"of_volume": str(volume.id), "fence_version": 2}
        assert (await carried_out(services, expand)).status == "succeeded"
        job = await carried_out(services, job)
        assert job.result == {"snapshot_id": str(snapshot.id), "volume_id": str(volume.id)}
        with pytest.raises(SnapshotNotFound):
            await services.snapshots.get(snapshot.id, project_id=DEFAULT_PROJECT)

    async def test_volume_can_be_deleted_after_its_last_snapshot(self, services: Services) -> None:
        volume = await a_stored_volume(services)
        snapshot = await a_snapshot(services, volume)
        with pytest.raises(VolumeHasSnapshots):
            await services.volumes.request_delete(volume.id)
        job = await services.snapshots.request_delete(snapshot.id)
        with pytest.raises(VolumeHasSnapshots):
            await services.volumes.request_delete(volume.id)
        await carried_out(services, job)

        assert (await carried_out(services, await services.volumes.request_delete(volume.id))).status == "succeeded"

    async def test_name_of_a_deleted_snapshot_can_be_reused(self, services: Services) -> None:
        volume = await a_stored_volume(services)
        snapshot = await a_snapshot(services, volume, "same")
        await carried_out(services, await services.snapshots.request_delete(snapshot.id))

        assert (await services.snapshots.request_take(volume.id, "same")).snapshot_id != snapshot.id


class TestClone:
    async def test_clone_creates_a_volume_and_blocks_deletion_of_the_snapshot(self, services: Services) -> None:
        volume = await a_stored_volume(services)
        snapshot = await a_snapshot(services, volume)
        new = NewVolume("clone", 2 * MIB, columns={"labels": {"a": "b"}})
        job = await services.snapshots.request_clone(snapshot.id, new, origin=RequestOrigin(Actor("me")))
        clone = await volume_row(services, job.volume_id)

        assert await states(services, job) == ("creating", "cloning")
        assert (clone["name"], clone["backend"], clone["labels"]) == ("clone", "memory", {"a": "b"})
        assert (job.snapshot_id, job.backend, job.created_by) == (snapshot.id, "memory", "me")
        assert job.params == {"of_volume": str(volume.id), "size": 2 * MIB, "fence_version": 1}
        with pytest.raises(SnapshotBusy) as refused:
            await services.snapshots.request_delete(snapshot.id)
        assert refused.value.details["job_id"] == job.id

        job = await carried_out(services, job)
        assert await states(services, job) == ("available", "ready")
        assert job.result == {"snapshot_id": str(snapshot.id), "volume_id": str(job.volume_id), "size": 2 * MIB}

    async def test_clone_without_size_is_as_large_as_the_snapshot(self, services: Services) -> None:
        snapshot = await a_snapshot(services, await a_stored_volume(services, size=3 * MIB))
        job = await carried_out(services, await services.snapshots.request_clone(snapshot.id, NewVolume("clone")))

        assert (await volume_row(services, job.volume_id))["size"] == 3 * MIB

    @pytest.mark.parametrize(
        ("new", "refusal", "field"),
        [
            (NewVolume("clone", MIB - 1), Invalid, "size"),
            (NewVolume("clone", backend="tape"), UnknownBackend, "backend"),
            (NewVolume("clone", backend="other"), Invalid, "backend"),
        ],
    )
    async def test_impossible_clone_is_refused_with_its_field(
        self, settings: Settings, new: NewVolume, refusal: type[Invalid], field: str
    ) -> None:
        backends = {"memory": "memory:", "other": "memory:"}
        async with open_services(settings.model_copy(update={"backends": backends}), adopt=True) as services:
            snapshot = await a_snapshot(services, await a_stored_volume(services))
            before = await all_rows(services)
            with pytest.raises(refusal) as refused:
                await services.snapshots.request_clone(snapshot.id, new)

            assert type(refused.value) is refusal
            assert refused.value.details["field"] == field
            assert await all_rows(services) == before

    async def test_taken_name_leaves_the_snapshot_unchanged(self, services: Services) -> None:
        snapshot = await a_snapshot(services, await a_stored_volume(services))
        await a_volume(services, name="mine")
        before = await all_rows(services)
        with pytest.raises(NameTaken):
            await services.snapshots.request_clone(snapshot.id, NewVolume("mine"))

        assert await all_rows(services) == before

    async def test_snapshot_is_released_after_the_last_of_several_clones(self, services: Services) -> None:
        snapshot = await a_snapshot(services, await a_stored_volume(services))
        requests = [await services.snapshots.request_clone(snapshot.id, NewVolume(f"c{n}")) for n in range(3)]
        observed = []
        for job in requests[2], requests[0], requests[1]:
            await carried_out(services, job)
            found = await snapshot_row(services, snapshot.id)
            observed.append((found["state"], found["job_id"]))

        assert observed == [("cloning", requests[0].id), ("cloning", requests[1].id), ("ready", None)]
        assert (await snapshot_row(services, snapshot.id))["version"] == 1 + 3 + 3

    async def test_failed_clone_does_not_release_the_snapshot_of_others(self, services: Services) -> None:
        snapshot = await a_snapshot(services, await a_stored_volume(services))
        lost, remaining = [await services.snapshots.request_clone(snapshot.id, NewVolume(name)) for name in ("a", "b")]
        assert await states(services, await given_up(services, lost)) == ("error", "cloning")
        with pytest.raises(SnapshotBusy) as refused:
            await services.snapshots.request_delete(snapshot.id)

        assert refused.value.details["job_id"] == remaining.id
        assert await states(services, await services.jobs.cancel(remaining.id)) == ("error", "ready")

    async def test_clone_outlives_its_snapshot(self, services: Services) -> None:
        volume = await a_stored_volume(services)
        snapshot = await a_snapshot(services, volume)
        job = await carried_out(services, await services.snapshots.request_clone(snapshot.id, NewVolume("clone")))
        await carried_out(services, await services.snapshots.request_delete(snapshot.id))
        await carried_out(services, await services.volumes.request_delete(volume.id))

        assert job.volume_id is not None
        expand = await services.volumes.request_expand(job.volume_id, Growth(by=MIB))
        assert (await carried_out(services, expand)).status == "succeeded"

    async def test_volume_other_than_a_clone_needs_a_size(self, services: Services) -> None:
        with pytest.raises(Invalid) as refused:
            await services.volumes.request_create(NewVolume("sizeless"))

        assert refused.value.details == {"field": "size"}


@pytest.mark.parametrize("kind", ["snapshot.restore", "snapshot.clone", "snapshot.delete"])
async def test_missing_or_unfinished_snapshot_is_refused(services: Services, kind: str) -> None:
    volume = await a_stored_volume(services)
    snapshot = await a_snapshot(services, volume)
    await sql(services, "UPDATE snapshots SET state = 'taking', job_id = id")
    before = await all_rows(services)
    with pytest.raises(SnapshotBusy) as refused:
        await requested(services, kind, volume, snapshot)

    assert refused.value.details == {"job_id": snapshot.id, "state": "taking"}
    assert await all_rows(services) == before
    await sql(services, "DELETE FROM snapshots")
    with pytest.raises(SnapshotNotFound):
        await requested(services, kind, volume, snapshot)


@pytest.mark.parametrize("kind", ["snapshot.restore", "snapshot.clone"])
async def test_snapshot_in_error_can_only_be_deleted(services: Services, kind: str) -> None:
    volume = await a_stored_volume(services)
    snapshot = await a_snapshot(services, volume)
    await sql(services, "UPDATE snapshots SET state = 'error'")
    with pytest.raises(SnapshotUnusable):
        await requested(services, kind, volume, snapshot)

    assert (await requested(services, "snapshot.delete", volume, snapshot)).status == "queued"


@pytest.mark.parametrize("kind", OPERATIONS)
async def test_retry_has_a_higher_fence_and_the_same_params(services: Services, kind: str) -> None:
    volume = await a_stored_volume(services)
    old = await given_up(services, await requested(services, kind, volume))
    new = await services.jobs.retry(old.id)

    assert (new.kind, new.retry_of, new.volume_id, new.snapshot_id) == (kind, old.id, old.volume_id, old.snapshot_id)
    assert ClaimedJob.from_row(new).fence > (old.params["fence_version"] + 1, 0)
    assert {**new.params, "fence_version": 0} == {**old.params, "fence_version": 0}
    assert (await carried_out(services, new)).status == "succeeded"


async def test_job_that_lost_its_snapshot_cannot_be_recorded(services: Services) -> None:
    job = await requested(services, "snapshot.restore", await a_stored_volume(services))
    await sql(services, "UPDATE snapshots SET job_id = :other", other=uuid4())
    with pytest.raises(RuntimeError, match="not held by the jobs that end"):
        await carried_out(services, job)

    assert (await volume_row(services, job.volume_id))["state"] == "restoring"


async def test_job_that_killed_every_worker_fails_and_releases_its_rows(services: Services) -> None:
    jobs = [await requested(services, kind, await a_stored_volume(services)) for kind in OPERATIONS]
    for job in jobs:
        await set_job(
            services,
            job.id,
            "status = 'running', attempt = 100, started_at = now(), lease_expires_at = now() - interval '1 second'",
        )
    await an_engine(services).maintenance.rescue()

    assert [await states(services, job) for job in jobs] == [
        ("available", "error"),
        ("available", "ready"),
        (None, "error"),
        ("error", "ready"),
        ("error", None),
    ]


class TestLists:
    async def test_snapshots_are_filtered_and_paged_newest_first(self, services: Services) -> None:
        one, other = await a_stored_volume(services), await a_stored_volume(services)
        for name in "abc":
            await a_snapshot(services, one, name)
        await a_snapshot(services, other, "a")
        await sql(services, "UPDATE snapshots SET state = 'error' WHERE name = 'b'")

        assert await names(services) == ["a", "c", "b", "a"]
        assert await names(services, volume_id=one.id) == ["c", "b", "a"]
        assert await names(services, name="a") == ["a", "a"]
        assert await names(services, state=SnapshotState.ERROR) == ["b"]
        first = await services.snapshots.list_snapshots(
            SnapshotFilter(), PageRequest("snapshots", limit=3), project_id=DEFAULT_PROJECT
        )
        rest = PageRequest("snapshots", limit=3, cursor=first.next_cursor)
        last = await services.snapshots.list_snapshots(SnapshotFilter(), rest, project_id=DEFAULT_PROJECT)
        assert ([snapshot.name for snapshot in last.items], last.next_cursor) == (["a"], None)

    async def test_snapshots_are_filtered_by_all_of_the_labels(self, services: Services) -> None:
        volume = await a_stored_volume(services)
        for name, labels in (("one", {"a": "1", "b": "2"}), ("two", {"a": "1"}), ("three", {})):
            await carried_out(services, await services.snapshots.request_take(volume.id, name, labels=labels))

        assert await names(services, labels={"a": "1"}) == ["two", "one"]
        assert await names(services, labels={"a": "1", "b": "2"}) == ["one"]
        assert await names(services, labels={"a": "2"}) == []

    async def test_unknown_snapshot_is_not_found(self, services: Services) -> None:
        with pytest.raises(SnapshotNotFound):
            await services.snapshots.get(uuid4(), project_id=DEFAULT_PROJECT)


@pytest.mark.parametrize("kind", ["snapshot.take", "snapshot.delete"])
async def test_failure_leaves_the_size_of_a_snapshot_as_it_was(services: Services, kind: str) -> None:
    job = await given_up(services, await requested(services, kind, await a_stored_volume(services)), {"size": 5 * MIB})
    snapshot = await snapshot_row(services, job.snapshot_id)

    assert (job.status, snapshot["state"], snapshot["size"]) == ("failed", "error", MIB)


async def test_retry_of_a_restore_whose_snapshot_is_gone_is_refused_for_good(services: Services) -> None:
    volume = await a_stored_volume(services)
    failed = await given_up(services, await requested(services, "snapshot.restore", volume))
    await carried_out(services, await services.snapshots.request_delete(failed.snapshot_id or UUID(int=0)))
    await services.volumes.request_expand(volume.id, Growth(by=MIB))  # busy: this would pass

    with pytest.raises(SnapshotNotFound):
        await services.jobs.retry(failed.id)
