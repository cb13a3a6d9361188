"""The operations on volumes and snapshots, as data: one row per job kind.

All that must know what an operation does reads this table: the moves between states, the handler that performs and
records the jobs (`domain.operation_handler`), `cistern check`, the simulation and the documentation.
"""

import enum
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeVar
from uuid import UUID

from domain.errors import ShrinkRefused
from domain.jobs.attempt import ClaimedJob, Payload
from domain.jobs.kinds import JobKind
from domain.jobs.model import Job, new_job
from domain.storage.context import Grant
from domain.storage.driver import StorageDriver
from domain.storage.growing import grow

#: The parameter that has the file system to be grown after the storage work: that of a volume that nobody has.
GROW_FILESYSTEM: Final = "grow_filesystem"


class VolumeState(enum.StrEnum):
    """The operation in progress on a volume, or the state in which the last one left it."""

    CREATING = "creating"
    AVAILABLE = "available"
    EXPANDING = "expanding"
    SNAPSHOTTING = "snapshotting"
    RESTORING = "restoring"
    DELETING = "deleting"
    ATTACHING = "attaching"
    DETACHING = "detaching"
    ERROR = "error"


class SnapshotState(enum.StrEnum):
    """The operation in progress on a snapshot, or the state in which the last one left it."""

    TAKING = "taking"
    READY = "ready"
    RESTORING = "restoring"
    CLONING = "cloning"
    DELETING = "deleting"
    ERROR = "error"


State = TypeVar("State", VolumeState, SnapshotState)


class Published(enum.Enum):
    """What an operation publishes on the storage. The fence is made from the version of its row."""

    VOLUME = "volume"
    SNAPSHOT = "snapshot"


@dataclass(frozen=True)
class Transition(Generic[State]):
    """How an operation moves a row: from an ``idle`` state to ``busy``, and to the next idle one when its job ends.

    If ``success`` is None, a successful job deletes the row. If it is ``shared``, several jobs may hold the row at the
    same time, and the last one to end moves it on.
    """

    idle: tuple[State, ...]
    busy: State
    success: State | None
    failure: State
    shared: bool = False


@dataclass(frozen=True)
class Operation:
    """What jobs of one kind do to a volume, a snapshot, or both."""

    kind: JobKind
    publishes: Published
    #: The storage work; None if the node of an attachment does the work. Returns what the job reports besides its ids:
    #: ``size`` of what it has published, in bytes, and whatever else the operation finds out. The size is None if a
    #: snapshot is taken or restored on a backend that stores no sizes.
    storage_work: Callable[[StorageDriver, ClaimedJob, Grant], Awaitable[Payload]] | None
    volume: Transition[VolumeState] | None
    snapshot: Transition[SnapshotState] | None = None
    #: Whether it replaces bytes that a client may have written since an earlier attempt.
    overwrites: bool = False
    #: Returns the parameters of a retry, from those of the ended job and the size of the volume that it acquires.
    retry_params: Callable[[Payload, int | None], Payload] = lambda params, _: params


class AcquiredRow(Protocol):
    """The row of a volume or snapshot that a job has acquired, which has raised its version."""

    @property
    def id(self) -> UUID:
        """Its id."""

    @property
    def project_id(self) -> UUID:
        """Its project, which is that of the job."""

    @property
    def version(self) -> int:
        """Its version, from which the fence is made."""

    @property
    def job_id(self) -> UUID | None:
        """The job."""


class AcquiredVolume(AcquiredRow, Protocol):
    """The row of a volume that a job has acquired."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def backend(self) -> str:
        """The backend that stores it."""


class AcquiredSnapshot(AcquiredRow, Protocol):
    """The row of a snapshot that a job has acquired."""

    @property
    def volume_id(self) -> UUID:
        """The volume that it was taken of."""


def job_for(
    kind: JobKind,
    params: Payload,
    volume: AcquiredVolume | None = None,
    snapshot: AcquiredSnapshot | None = None,
    *,
    max_attempts: int,
    **columns: Any,
) -> Job:
    """Build the job that has acquired a volume, a snapshot, or both.

    ``volume_id`` of the job is the volume that it holds. A deletion of a snapshot holds none, so that it neither waits
    for nor blocks other operations on the volume; its ``backend`` is passed in, as that of a node's job is.
    ``params["of_volume"]`` is the volume that the snapshot was taken of.
    """
    published = volume if OPERATIONS[kind].publishes is Published.VOLUME else snapshot
    if published is None:
        raise RuntimeError(f"{kind} needs the row of what it publishes")
    if volume is not None:
        columns = {"backend": volume.backend} | columns
        columns |= {"volume_id": volume.id, "volume_name": volume.name}
    if snapshot is not None:
        params = {**params, "of_volume": str(snapshot.volume_id)}
        columns |= {"snapshot_id": snapshot.id}
    params = {**params, "fence_version": published.version}
    columns |= {"project_id": published.project_id, "job_id": published.job_id}
    return new_job(kind, params, max_attempts=max_attempts, **columns)


def volume_of(job: Job | ClaimedJob) -> UUID:
    """Return the id of the volume that a job holds."""
    if job.volume_id is None:
        raise RuntimeError(f"{job.kind} {job.id} names no volume")
    return job.volume_id


def snapshot_of(job: Job | ClaimedJob) -> UUID:
    """Return the id of the snapshot that a job works on."""
    if job.snapshot_id is None:
        raise RuntimeError(f"{job.kind} {job.id} names no snapshot")
    return job.snapshot_id


def source_of(job: Job | ClaimedJob) -> UUID:
    """Return the id of the volume that a job's snapshot was taken of."""
    return UUID(job.params["of_volume"])


# --- the storage work --------------------------------------------------------------------------------------


async def _create(driver: StorageDriver, job: ClaimedJob, grant: Grant) -> Payload:
    volume_id, size, filesystem = volume_of(job), job.params["size"], job.params.get("filesystem")
    if filesystem is None:
        return {"size": await driver.create(volume_id, size, grant)}
    size = await driver.create(volume_id, size, grant, filesystem)
    return {"size": size, "filesystem_grown_to": size}


async def _expand(driver: StorageDriver, job: ClaimedJob, grant: Grant) -> Payload:
    return await _grown(driver, job, await driver.expand(volume_of(job), job.params["to_size"], grant), grant)


async def _delete(driver: StorageDriver, job: ClaimedJob, grant: Grant) -> Payload:
    await driver.delete(volume_of(job), grant)
    return {}


async def _take(driver: StorageDriver, job: ClaimedJob, grant: Grant) -> Payload:
    if job.retry_of is not None:
        # The job retried here may have left a snapshot behind, of the volume's data at that time.
        await driver.delete_snapshot(source_of(job), snapshot_of(job), grant)
    return {"size": (await driver.take_snapshot(source_of(job), snapshot_of(job), grant)).size}


async def _restore(driver: StorageDriver, job: ClaimedJob, grant: Grant) -> Payload:
    size = await driver.restore_snapshot(volume_of(job), snapshot_of(job), grant)
    return await _grown(driver, job, size, grant)


async def _clone(driver: StorageDriver, job: ClaimedJob, grant: Grant) -> Payload:
    volume_id, size = volume_of(job), job.params["size"]
    size = await driver.clone_snapshot(source_of(job), snapshot_of(job), volume_id, size, grant)
    return await _grown(driver, job, size, grant)


async def _isolate(driver: StorageDriver, job: ClaimedJob, grant: Grant) -> Payload:
    return {"size": await driver.isolate(volume_of(job), grant)}


async def _delete_snapshot(driver: StorageDriver, job: ClaimedJob, grant: Grant) -> Payload:
    await driver.delete_snapshot(source_of(job), snapshot_of(job), grant)
    return {}


async def _grown(driver: StorageDriver, job: ClaimedJob, size: int | None, grant: Grant) -> Payload:
    """Grow the file system of a volume whose bytes are published, if the job says so; return what was made."""
    filesystem = job.params.get(GROW_FILESYSTEM)
    if filesystem is None or size is None:
        return {"size": size}
    return {"size": size, **await grow(driver, volume_of(job), filesystem, size, grant)}


# --- the parameters of a retry -------------------------------------------------------------------------------


def _still_growing(params: Payload, size: int | None) -> Payload:
    """Keep the size that the first request asked for, unless the volume has become larger.

    Raises:
        ShrinkRefused: it has.
    """
    if size is not None and params["to_size"] < size:
        raise ShrinkRefused(field="to", size=size)
    return params


def _of_current_size(params: Payload, size: int | None) -> Payload:
    """Work on the volume as it is now."""
    return {**params, "size": size}


# --- the table -----------------------------------------------------------------------------------------------

_V, _S = VolumeState, SnapshotState

#: A volume or snapshot that a failed operation may have left halfway (created, taken or deleted) ends in ``error``:
#: retry the job, or delete it. Any other operation can fail at every step without harm.
OPERATIONS: Final[Mapping[str, Operation]] = {
    operation.kind: operation
    for operation in (
        Operation(
            JobKind.VOLUME_CREATE,
            Published.VOLUME,
            _create,
            Transition((_V.ERROR,), _V.CREATING, _V.AVAILABLE, _V.ERROR),
        ),
        Operation(
            JobKind.VOLUME_EXPAND,
            Published.VOLUME,
            _expand,
            Transition((_V.AVAILABLE,), _V.EXPANDING, _V.AVAILABLE, _V.AVAILABLE),
            retry_params=_still_growing,
        ),
        Operation(
            JobKind.VOLUME_DELETE,
            Published.VOLUME,
            _delete,
            Transition((_V.AVAILABLE, _V.ERROR), _V.DELETING, None, _V.ERROR),
        ),
        Operation(
            JobKind.VOLUME_ATTACH,
            Published.VOLUME,
            None,
            Transition((_V.AVAILABLE,), _V.ATTACHING, _V.AVAILABLE, _V.AVAILABLE),
        ),
        Operation(
            JobKind.VOLUME_DETACH,
            Published.VOLUME,
            None,
            Transition((_V.AVAILABLE,), _V.DETACHING, _V.AVAILABLE, _V.AVAILABLE),
        ),
        Operation(
            JobKind.VOLUME_ISOLATE,
            Published.VOLUME,
            _isolate,
            Transition((_V.AVAILABLE,), _V.DETACHING, _V.AVAILABLE, _V.AVAILABLE),
        ),
        Operation(
            JobKind.SNAPSHOT_TAKE,
            Published.SNAPSHOT,
            _take,
            Transition((_V.AVAILABLE,), _V.SNAPSHOTTING, _V.AVAILABLE, _V.AVAILABLE),
            Transition((_S.ERROR,), _S.TAKING, _S.READY, _S.ERROR),
            retry_params=_of_current_size,
        ),
        Operation(
            JobKind.SNAPSHOT_RESTORE,
            Published.VOLUME,
            _restore,
            Transition((_V.AVAILABLE,), _V.RESTORING, _V.AVAILABLE, _V.AVAILABLE),
            Transition((_S.READY,), _S.RESTORING, _S.READY, _S.READY),
            overwrites=True,
            retry_params=_of_current_size,
        ),
        Operation(
            JobKind.SNAPSHOT_CLONE,
            Published.VOLUME,
            _clone,
            Transition((_V.ERROR,), _V.CREATING, _V.AVAILABLE, _V.ERROR),
            Transition((_S.READY, _S.CLONING), _S.CLONING, _S.READY, _S.READY, shared=True),
            retry_params=_of_current_size,
        ),
        Operation(
            JobKind.SNAPSHOT_DELETE,
            Published.SNAPSHOT,
            _delete_snapshot,
            None,
            Transition((_S.READY, _S.ERROR), _S.DELETING, None, _S.ERROR),
        ),
    )
}


def _moves(states: type[State], transitions: Iterable[Transition[State] | None]) -> dict[State, frozenset[State]]:
    moves: dict[State, set[State]] = {state: set() for state in states}
    for transition in filter(None, transitions):
        for state in transition.idle:
            moves[state].add(transition.busy)
        moves[transition.busy] |= {transition.success, transition.failure} - {None}  # type: ignore[arg-type]
    return {state: frozenset(targets) for state, targets in moves.items()}


#: The states to which a volume or snapshot may move from each state.
VOLUME_MOVES: Final = _moves(VolumeState, (operation.volume for operation in OPERATIONS.values()))
SNAPSHOT_MOVES: Final = _moves(SnapshotState, (operation.snapshot for operation in OPERATIONS.values()))
#: The states in which jobs hold the volume or snapshot. In the others, the next job may acquire it.
BUSY: Final = frozenset(
    transition.busy
    for operation in OPERATIONS.values()
    for transition in (operation.volume, operation.snapshot)
    if transition is not None
)
