"""What must be true of every moment, and of every step from one moment to the next."""

from collections.abc import Iterable
from itertools import chain

from domain.bulk.kinds import BULK_KINDS, SNAPSHOT
from domain.bulk.states import FINISHED
from domain.bulk.states import MOVES as ITEM_MOVES
from domain.jobs.outcomes import Cancelled, Failed, Outcome, Released, RetryIn, Yielded
from domain.jobs.states import ENDED, MOVES
from domain.jobs.store.orphans import EXTRA_CLAIMS
from tests.simulation.doubles import SEALS, Publication
from tests.simulation.world_state import SNAPSHOT_STATE_OF, STATE_OF, Row, WorldState

#: At rest, a volume is as large as its row says.
AT_REST = "available"


def at_any_moment(now: WorldState, loose: set[str]) -> None:
    """``loose``: what was let go without anybody having shut earlier attempts out of the storage."""
    for job in now.live():
        _holds_what_it_is_about(job, now)
    for volume_id, volume in now.volumes.items():
        holder = volume["job_id"]
        assert holder is None or not now.ended(holder), f"volume {volume_id} is stuck with a job that has ended"
        if volume["state"] == AT_REST and volume_id not in loose:
            assert volume["size"] == now.disk.get(volume_id), f"volume {volume_id} is not what its row says"
    for snapshot_id, snapshot in now.snapshots.items():
        holder = snapshot["job_id"]
        assert (holder is None) == (snapshot["state"] in ("ready", "error"))
        assert holder is None or not now.ended(holder), f"snapshot {snapshot_id} is stuck with a job that has ended"
        if snapshot["state"] == "ready" and snapshot_id not in loose:
            assert snapshot["size"] == now.kept.get(snapshot_id), f"snapshot {snapshot_id} is not what its row says"
    _nothing_is_left_of_what_is_gone(now, loose)
    for job in now.jobs.values():
        _counts_are_right(job, now)


def _holds_what_it_is_about(job: Row, now: WorldState) -> None:
    if job["kind"] in STATE_OF:
        volume = now.volumes[job["volume_id"]]
        assert (volume["job_id"], volume["state"]) == (job["id"], STATE_OF[job["kind"]]), f"{job} has lost {volume}"
    if job["kind"] in SNAPSHOT_STATE_OF:
        snapshot = now.snapshots[job["snapshot_id"]]
        assert snapshot["state"] == SNAPSHOT_STATE_OF[job["kind"]], f"{job} has lost {snapshot}"
        assert job["kind"] == "snapshot.clone" or snapshot["job_id"] == job["id"], f"{job} has lost {snapshot}"


def _nothing_is_left_of_what_is_gone(now: WorldState, loose: set[str]) -> None:
    assert set(now.disk) <= set(now.volumes) | loose, "a volume that was deleted is back on the storage"
    assert set(now.kept) <= set(now.snapshots) | loose, "a snapshot that was deleted is back on the storage"


def _counts_are_right(job: Row, now: WorldState) -> None:
    assert 0 <= job["attempt"] <= job["max_attempts"] + EXTRA_CLAIMS + 1, f"too many attempts: {job}"
    if job["kind"] not in BULK_KINDS:
        return
    items = now.items_of(job["id"])
    if job["total"] is not None:
        finished = {status: sum(item["status"] == status for item in items) for status in FINISHED}
        assert {status: job[status] for status in FINISHED} == finished, f"the ledger does not add up: {job}"
        assert job["total"] == len(items)
    if job["status"] in ENDED:
        assert all(item["status"] in FINISHED for item in items), f"ended with unfinished items: {job}"


def of_a_step(was: WorldState, now: WorldState, cause: Outcome | str | None, loose: set[str]) -> None:
    for job_id, job in was.jobs.items():
        _job_moves_on(job, now.jobs[job_id], cause)
    for (job_id, volume_id), item in was.items.items():
        if (job_id, volume_id) in now.items:
            _item_moves_on(item, now.items[job_id, volume_id])
        else:
            assert was.jobs[job_id]["total"] is None, "items are gone"
    for volume_id in chain(was.volumes, now.volumes.keys() - was.volumes.keys()):
        _volume_moves_on(volume_id, was, now, cause)
    for snapshot_id in was.snapshots.keys() & now.snapshots.keys():
        _snapshot_moves_on(snapshot_id, was, now, cause)
    for volume_id in was.disk.keys() | now.disk.keys():
        if volume_id not in loose:
            _size_is_explained(volume_id, was, now)


def _item_moves_on(item: Row, after: Row) -> None:
    assert after["status"] == item["status"] or after["status"] in ITEM_MOVES[item["status"]], f"{item} {after}"
    assert item["status"] not in FINISHED or after == item, f"a finished item has changed: {item} {after}"
    kept = item["to_size"] is None or after["status"] not in ("claimed", "succeeded")
    assert kept or after["to_size"] == item["to_size"], f"a size that was written down has changed: {after}"


def _job_moves_on(job: Row, after: Row, cause: Outcome | str | None) -> None:
    if job["status"] in ENDED:
        assert after == job, f"a job that has ended changed:\n{job}\n{after}"
        return
    moved = (job["status"], after["status"])
    assert moved[0] == moved[1] or moved[1] in MOVES[moved[0]], f"{job['kind']} went from {moved[0]} to {moved[1]}"
    requeued = moved == ("running", "queued")
    assert after["epoch"] == job["epoch"] + requeued, f"rings went wrong:\n{job}\n{after}"
    assert after["version"] >= job["version"] + (moved[0] != moved[1])
    if moved == ("queued", "running"):
        assert after["attempt"] == job["attempt"] + 1, f"a claim is an attempt:\n{job}\n{after}"
    elif requeued:
        assert after["attempt"] == _attempts_left(job["attempt"], cause), f"after {cause}:\n{job}\n{after}"
    elif job["kind"] not in BULK_KINDS:  # of a whole, attempts count how often lanes were sent out
        assert after["attempt"] == job["attempt"]


def _attempts_left(attempt: int, cause: Outcome | str | None) -> int:
    match cause:
        case "rescue":
            return attempt
        case Released():
            return attempt - 1
        case Yielded():
            return 0
        case RetryIn(free=free):
            return attempt - int(free)
    raise AssertionError(f"nothing puts a job back into the queue by {cause}")


def _events(was: WorldState, now: WorldState) -> Iterable[Row]:
    """What was accepted in this step, and what ended in it."""
    for job_id, job in now.jobs.items():
        if job_id not in was.jobs:
            yield job
        if job["status"] in ENDED and not (job_id in was.jobs and was.ended(job_id)):
            yield job


def _volume_moves_on(volume_id: str, was: WorldState, now: WorldState, cause: Outcome | str | None) -> None:
    volume, after = was.volumes.get(volume_id), now.volumes.get(volume_id)
    events = [job for job in _events(was, now) if job["volume_id"] == volume_id and job["kind"] in STATE_OF]
    if volume is None:
        assert after is not None
        assert after["version"] == 1
        assert events
    elif after is None:
        assert [job["status"] for job in events if job["kind"] == "volume.delete"] == ["succeeded"], "a volume is lost"
    else:
        changed_hands = volume["job_id"] != after["job_id"]
        risen = after["version"] - volume["version"]
        if cause == "tend" and volume["job_id"] == after["job_id"]:
            assert risen in (0, 1)
            return
        assert risen == int(changed_hands), f"volume {volume_id}: version raised by {risen} in {cause}"
        by_lanes = {volume["state"], after["state"]} & {"expanding", "snapshotting"}
        assert len(events) == int(changed_hands) or (by_lanes and not events)
        assert changed_hands or volume["size"] == after["size"], f"volume {volume_id} was resized by nobody"


def _snapshot_moves_on(snapshot_id: str, was: WorldState, now: WorldState, cause: Outcome | str | None) -> None:
    snapshot, after = was.snapshots[snapshot_id], now.snapshots[snapshot_id]
    risen = after["version"] - snapshot["version"]
    events = len([job for job in _events(was, now) if job["snapshot_id"] == snapshot_id])
    if snapshot["job_id"] is not None and was.jobs[snapshot["job_id"]]["kind"] == SNAPSHOT:
        let_go = snapshot["job_id"] != after["job_id"]
        assert risen == int(let_go) or (cause == "tend" and risen == 1), f"{cause}: {snapshot} {after}"
    else:
        assert risen == events, f"snapshot {snapshot_id}: {events} events raised its version by {risen}"


def _size_is_explained(volume_id: str, was: WorldState, now: WorldState) -> None:
    """On the storage a volume changes only in the hands of a job, and only to what that job is for."""
    before, after = was.disk.get(volume_id), now.disk.get(volume_id)
    if before == after:
        return
    holder = was.volumes[volume_id]["job_id"] if volume_id in was.volumes else None
    assert holder is not None, f"volume {volume_id} went from {before} to {after} in nobody's hands"
    if after is None:
        assert was.jobs[holder]["kind"] == "volume.delete", f"volume {volume_id} is lost"
        return
    assert was.jobs[holder]["kind"] != "volume.delete", f"volume {volume_id} is being deleted, and is back"
    assert after == was.target(volume_id), f"volume {volume_id} grew from {before} to {after}"
    assert before is None or after > before, f"volume {volume_id} shrank from {before} to {after}"


def of_success(job: Row, now: WorldState) -> None:
    """A job that has succeeded has done what it was asked for."""
    volume = now.volumes.get(job["volume_id"] or "")
    match job["kind"]:
        case "volume.create" | "snapshot.clone":
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


def of_publishing(publication: Publication, was: WorldState, last: Publication | None) -> None:
    """Only who has something in hand may change it, in time, and none after a later one."""
    assert publication.in_time, f"published after its lease: {publication}"
    assert last is None or publication.fence >= last.fence, f"{publication} came after {last}"
    job_id, subject = str(publication.job_id), str(publication.subject_id)
    if publication.operation in SEALS:
        return
    row = was.volumes.get(subject) or was.snapshots.get(subject)
    assert row is not None, f"published on what is gone: {publication}"
    holders = (job_id, was.jobs[job_id]["parent_id"])
    assert row["job_id"] in holders, f"published on what it does not have: {publication}"


def is_loose(job: Row, cause: Outcome | str | None) -> bool:
    """Whether a job ended without anybody having looked at the storage, so that earlier attempts may still publish."""
    if cause == "rescue":
        return True
    return isinstance(cause, Failed | Cancelled) and cause.found is None and job["started_at"] is not None
