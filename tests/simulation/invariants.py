"""What must hold in every state, and for every step from one state to the next.

``unsealed`` contains the ids of volumes and snapshots whose last job ended without sealing them in the storage, so that
stale attempts may still publish on them.
"""

from collections.abc import Iterable
from itertools import chain
from uuid import UUID

from domain.bulk.model import FINISHED
from domain.bulk.model import MOVES as ITEM_MOVES
from domain.jobs.attempt import Cancelled, Failed, Outcome, Released, RetryIn, Yielded
from domain.jobs.kinds import BULK_KINDS, JobKind
from domain.jobs.states import ENDED, MOVES
from domain.jobs.store.orphans import EXTRA_CLAIMS
from domain.storage.intermediate import intermediate_of
from tests.simulation.doubles import SEALS, Publication
from tests.simulation.world_state import SNAPSHOT_STATE_OF, SOURCE_STATE_OF, STATE_OF, Row, WorldState

#: The state in which a volume's stored size equals its row's.
AT_REST = "available"


def check_state(now: WorldState, unsealed: set[str]) -> None:
    for job in now.live():
        _holds_its_subjects(job, now)
    for volume_id, volume in now.volumes.items():
        holder = volume["job_id"]
        assert holder is None or not now.ended(holder), f"volume {volume_id} is held by a job that has ended"
        if volume["state"] == AT_REST and volume_id not in unsealed:
            assert volume["size"] == now.stored_volumes.get(volume_id), f"volume {volume_id} differs from its row"
        if volume["state"] == "expanding":  # what the limits of its project count
            assert volume["growing_to"] == now.target_size(volume_id), f"{volume} counts less than it may become"
    for snapshot_id, snapshot in now.snapshots.items():
        holder = snapshot["job_id"]
        assert (holder is None) == (snapshot["state"] in ("ready", "error"))
        assert holder is None or not now.ended(holder), f"snapshot {snapshot_id} is held by a job that has ended"
        if snapshot["state"] == "ready" and snapshot_id not in unsealed:
            stored = now.stored_snapshots.get(snapshot_id)
            assert snapshot["size"] == stored, f"snapshot {snapshot_id} differs from its row"
    _deleted_data_is_gone(now, unsealed)
    for job in now.jobs.values():
        _counters_are_correct(job, now)


def _holds_its_subjects(job: Row, now: WorldState) -> None:
    if job["kind"] in STATE_OF:
        volume = now.volumes[job["volume_id"]]
        assert (volume["job_id"], volume["state"]) == (job["id"], STATE_OF[job["kind"]]), f"{job} has lost {volume}"
    if job["kind"] in SOURCE_STATE_OF:
        source = now.volumes[job["params"]["of_volume"]]
        held = (source["job_id"], source["state"])
        assert held == (job["id"], SOURCE_STATE_OF[job["kind"]]), f"{job} has lost {source}"
    if job["kind"] in SNAPSHOT_STATE_OF:
        snapshot = now.snapshots[job["snapshot_id"]]
        assert snapshot["state"] == SNAPSHOT_STATE_OF[job["kind"]], f"{job} has lost {snapshot}"
        assert job["kind"] == "snapshot.clone" or snapshot["job_id"] == job["id"], f"{job} has lost {snapshot}"


def _deleted_data_is_gone(now: WorldState, unsealed: set[str]) -> None:
    assert set(now.stored_volumes) <= set(now.volumes) | unsealed, "a deleted volume is on the storage again"
    known = set(now.snapshots) | now.intermediates() | unsealed
    assert set(now.stored_snapshots) <= known, "a deleted snapshot is on the storage again"


def _counters_are_correct(job: Row, now: WorldState) -> None:
    assert 0 <= job["attempt"] <= job["max_attempts"] + EXTRA_CLAIMS + 1, f"too many attempts: {job}"
    if job["kind"] not in BULK_KINDS:
        return
    items = now.items_of(job["id"])
    if job["total"] is not None:
        finished = {status: sum(item["status"] == status for item in items) for status in FINISHED}
        assert {status: job[status] for status in FINISHED} == finished, f"counters differ from the ledger: {job}"
        assert job["total"] == len(items)
    if job["status"] in ENDED:
        assert all(item["status"] in FINISHED for item in items), f"ended with unfinished items: {job}"


def check_step(before: WorldState, now: WorldState, cause: Outcome | str | None, unsealed: set[str]) -> None:
    for job_id, job in before.jobs.items():
        _check_job(job, now.jobs[job_id], cause)
    for (job_id, volume_id), item in before.items.items():
        if (job_id, volume_id) in now.items:
            _check_item(item, now.items[job_id, volume_id])
        else:
            assert before.jobs[job_id]["total"] is None, "items have disappeared"
    for volume_id in chain(before.volumes, now.volumes.keys() - before.volumes.keys()):
        _check_volume(volume_id, before, now, cause)
    for snapshot_id in before.snapshots.keys() & now.snapshots.keys():
        _check_snapshot(snapshot_id, before, now, cause)
    for volume_id in before.stored_volumes.keys() | now.stored_volumes.keys():
        if volume_id not in unsealed:
            _check_stored_size(volume_id, before, now)


def _check_item(item: Row, after: Row) -> None:
    assert after["status"] == item["status"] or after["status"] in ITEM_MOVES[item["status"]], f"{item} {after}"
    assert item["status"] not in FINISHED or after == item, f"a finished item has changed: {item} {after}"
    may_change = item["to_size"] is None or after["status"] not in ("claimed", "succeeded")
    assert may_change or after["to_size"] == item["to_size"], f"a recorded target size has changed: {after}"


def _check_job(job: Row, after: Row, cause: Outcome | str | None) -> None:
    if job["status"] in ENDED:
        assert after == job, f"an ended job has changed:\n{job}\n{after}"
        return
    move = (job["status"], after["status"])
    assert move[0] == move[1] or move[1] in MOVES[move[0]], f"{job['kind']} went from {move[0]} to {move[1]}"
    requeued = move == ("running", "queued")
    assert after["epoch"] == job["epoch"] + requeued, f"wrong epoch:\n{job}\n{after}"
    assert after["version"] >= job["version"] + (move[0] != move[1])
    if move == ("queued", "running"):
        assert after["attempt"] == job["attempt"] + 1, f"a claim must count as an attempt:\n{job}\n{after}"
    elif requeued:
        assert after["attempt"] == _attempts_after_requeue(job["attempt"], cause), f"after {cause}:\n{job}\n{after}"
    elif job["kind"] not in BULK_KINDS:  # a parent's attempts also count how often lanes were assigned
        assert after["attempt"] == job["attempt"]


def _attempts_after_requeue(attempt: int, cause: Outcome | str | None) -> int:
    match cause:
        case "rescue":
            return attempt
        case Released():
            return attempt - 1
        case Yielded():
            return 0
        case RetryIn(free=free):
            return attempt - int(free)
    raise AssertionError(f"{cause} must not requeue a job")


def _events(before: WorldState, now: WorldState) -> Iterable[Row]:
    """Yield each job that was accepted in this step, and each that ended in it."""
    for job_id, job in now.jobs.items():
        if job_id not in before.jobs:
            yield job
        if job["status"] in ENDED and not (job_id in before.jobs and before.ended(job_id)):
            yield job


def _check_volume(volume_id: str, before: WorldState, now: WorldState, cause: Outcome | str | None) -> None:
    volume, after = before.volumes.get(volume_id), now.volumes.get(volume_id)
    events = [job for job in _events(before, now) if volume_id in now.held_volumes(job)]
    if volume is None:
        assert after is not None
        assert after["version"] == 1
        assert events
    elif after is None:
        assert [job["status"] for job in events if job["kind"] == "volume.delete"] == ["succeeded"], "a volume is lost"
    else:
        holder_changed = volume["job_id"] != after["job_id"]
        raised_by = after["version"] - volume["version"]
        if cause == "assign_lanes" and volume["job_id"] == after["job_id"]:
            assert raised_by in (0, 1)
            return
        assert raised_by == int(holder_changed), f"volume {volume_id}: version raised by {raised_by} in {cause}"
        in_bulk_job = {volume["state"], after["state"]} & {"expanding", "snapshotting"}
        assert len(events) == int(holder_changed) or (in_bulk_job and not events)
        assert holder_changed or volume["size"] == after["size"], f"volume {volume_id} was resized without a job"


def _check_snapshot(snapshot_id: str, before: WorldState, now: WorldState, cause: Outcome | str | None) -> None:
    snapshot, after = before.snapshots[snapshot_id], now.snapshots[snapshot_id]
    raised_by = after["version"] - snapshot["version"]
    events = len([job for job in _events(before, now) if job["snapshot_id"] == snapshot_id])
    if snapshot["job_id"] is not None and before.jobs[snapshot["job_id"]]["kind"] == JobKind.BULK_SNAPSHOT:
        released = snapshot["job_id"] != after["job_id"]
        reassigned = cause == "assign_lanes" and raised_by == 1
        assert raised_by == int(released) or reassigned, f"{cause}: {snapshot} {after}"
    else:
        assert raised_by == events, f"snapshot {snapshot_id}: {events} events raised its version by {raised_by}"


def _check_stored_size(volume_id: str, before: WorldState, now: WorldState) -> None:
    """A stored volume changes only while a job holds it, and only to what that job is for."""
    size, new_size = before.stored_volumes.get(volume_id), now.stored_volumes.get(volume_id)
    if size == new_size:
        return
    holder = before.volumes[volume_id]["job_id"] if volume_id in before.volumes else None
    assert holder is not None, f"volume {volume_id} went from {size} to {new_size} without a job"
    if new_size is None:
        job = before.jobs[holder]
        is_made_anew = job["kind"] == "volume.clone" and job["volume_id"] == volume_id and job["retry_of"] is not None
        assert job["kind"] == "volume.delete" or is_made_anew, f"volume {volume_id} is lost"
        return
    assert before.jobs[holder]["kind"] != "volume.delete", f"volume {volume_id} reappeared while it was being deleted"
    assert new_size == before.target_size(volume_id), f"volume {volume_id} grew from {size} to {new_size}"
    assert size is None or new_size > size, f"volume {volume_id} shrank from {size} to {new_size}"


def check_success(job: Row, now: WorldState) -> None:
    """A succeeded job has had its effect."""
    volume = now.volumes.get(job["volume_id"] or "")
    match job["kind"]:
        case "volume.create" | "snapshot.clone" | "volume.clone":
            assert volume is not None
            assert volume["size"] == job["params"]["size"]
        case "volume.expand":
            assert volume is not None
            assert volume["size"] == job["params"]["to_size"], f"growth lost or doubled: {job} {volume}"
        case "volume.delete":
            assert volume is None
        case "snapshot.take":
            assert now.snapshots[job["snapshot_id"]]["state"] == "ready"
        case "snapshot.delete":
            assert job["snapshot_id"] not in now.snapshots


def check_publication(publication: Publication, before: WorldState, last: Publication | None) -> None:
    """Only the holder of a subject publishes on it, within its lease, and never with a lower fence than the last."""
    assert publication.within_lease, f"published after its lease: {publication}"
    assert last is None or publication.fence >= last.fence, f"{publication} came after {last}"
    job_id, subject = str(publication.job_id), str(publication.subject_id)
    if publication.operation in SEALS:
        return
    if subject in before.intermediates():
        subject = str(UUID(before.jobs[job_id]["volume_id"]))
        assert str(publication.subject_id) == str(intermediate_of(UUID(subject))), f"not its own: {publication}"
    row = before.volumes.get(subject) or before.snapshots.get(subject)
    assert row is not None, f"published on a subject without a row: {publication}"
    holders = (job_id, before.jobs[job_id]["parent_id"])
    assert row["job_id"] in holders, f"published without holding the subject: {publication}"


def ended_unsealed(job: Row, cause: Outcome | str | None) -> bool:
    """Return whether a job ended without sealing its subject, so that earlier attempts may still publish."""
    if cause == "rescue":
        return True
    return isinstance(cause, Failed | Cancelled) and cause.found is None and job["started_at"] is not None
