"""The storage work of jobs, and what their columns and parameters name.

Each function returns what its job reports besides the ids, as `domain.operations.Operation` says.
"""

from contextlib import suppress
from typing import Final
from uuid import UUID

from domain.jobs.attempt import ClaimedJob, Payload
from domain.jobs.model import Job
from domain.storage.consistency import TakenSnapshot, take_snapshot
from domain.storage.context import Grant
from domain.storage.driver import StorageDriver
from domain.storage.errors import SizeImpossible
from domain.storage.growing import grow
from domain.storage.intermediate import intermediate_of

#: The parameter that has the file system to be grown after the storage work: that of a volume that nobody has.
GROW_FILESYSTEM: Final = "grow_filesystem"


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
    """Return the id of the volume that a job's snapshot was taken of, or that it clones."""
    return UUID(job.params["of_volume"])


async def create(driver: StorageDriver, job: ClaimedJob, grant: Grant) -> Payload:
    """Create the volume, with its file system."""
    volume_id, size, filesystem = volume_of(job), job.params["size"], job.params.get("filesystem")
    if filesystem is None:
        return {"size": await driver.create(volume_id, size, grant)}
    size = await driver.create(volume_id, size, grant, filesystem)
    return {"size": size, "filesystem_grown_to": size}


async def expand(driver: StorageDriver, job: ClaimedJob, grant: Grant) -> Payload:
    """Expand the volume, and its file system if the job says so."""
    return await _grown(driver, job, await driver.expand(volume_of(job), job.params["to_size"], grant), grant)


async def delete(driver: StorageDriver, job: ClaimedJob, grant: Grant) -> Payload:
    """Delete the volume."""
    await driver.delete(volume_of(job), grant)
    return {}


async def take(driver: StorageDriver, job: ClaimedJob, grant: Grant) -> Payload:
    """Take the snapshot."""
    if job.retry_of is not None:
        # The job retried here may have left a snapshot behind, of the volume's data at that time.
        await driver.delete_snapshot(source_of(job), snapshot_of(job), grant)
    size, consistency = await _snapshot(driver, job, snapshot_of(job), grant)
    return {"size": size, "consistency": consistency}


async def _snapshot(driver: StorageDriver, job: ClaimedJob, snapshot_id: UUID, grant: Grant) -> TakenSnapshot:
    """Take a snapshot as the job's parameters say; jobs of earlier versions have none of them."""
    options = {name: job.params.get(name, False) for name in ("allow_torn", "attached")}
    return await take_snapshot(driver, source_of(job), snapshot_id, grant, **options)


async def restore(driver: StorageDriver, job: ClaimedJob, grant: Grant) -> Payload:
    """Replace the bytes of the volume."""
    size = await driver.restore_snapshot(volume_of(job), snapshot_of(job), grant)
    return await _grown(driver, job, size, grant)


async def clone(driver: StorageDriver, job: ClaimedJob, grant: Grant) -> Payload:
    """Create the volume with the bytes of the snapshot."""
    volume_id, size = volume_of(job), job.params["size"]
    size = await driver.clone_snapshot(source_of(job), snapshot_of(job), volume_id, size, grant)
    return await _grown(driver, job, size, grant)


async def clone_volume(driver: StorageDriver, job: ClaimedJob, grant: Grant) -> Payload:
    """Clone an intermediate snapshot, which is deleted at once; a repetition goes on with the one that it finds."""
    clone, source, intermediate = volume_of(job), source_of(job), intermediate_of(volume_of(job))
    if job.retry_of is not None:
        # The job retried here may have left either behind, with the volume's data at that time.
        await driver.delete(clone, grant)
        await driver.delete_snapshot(source, intermediate, grant)
    stored, consistency = await driver.stat(clone, ()), None
    if stored is None or stored.volume.size is None:
        _, consistency = await _snapshot(driver, job, intermediate, grant)
    # A clone that exists is not replaced, and needs no snapshot: an earlier attempt died after it was made.
    size = await driver.clone_snapshot(source, intermediate, clone, job.params["size"], grant)
    await driver.delete_snapshot(source, intermediate, grant)
    return {**await _grown(driver, job, size, grant), "consistency": consistency}


async def remove_intermediate(driver: StorageDriver, job: ClaimedJob, grant: Grant) -> None:
    """Remove the intermediate snapshot of a clone that is given up."""
    source, intermediate = source_of(job), intermediate_of(volume_of(job))
    with suppress(SizeImpossible):  # it is sealed, and exists
        if await driver.seal_snapshot(source, intermediate, grant) is None:
            return
    await driver.delete_snapshot(source, intermediate, grant)


async def isolate(driver: StorageDriver, job: ClaimedJob, grant: Grant) -> Payload:
    """Publish the bytes of the volume anew, out of reach of those who have the old ones open."""
    return {"size": await driver.isolate(volume_of(job), grant)}


async def delete_snapshot(driver: StorageDriver, job: ClaimedJob, grant: Grant) -> Payload:
    """Delete the snapshot."""
    await driver.delete_snapshot(source_of(job), snapshot_of(job), grant)
    return {}


async def _grown(driver: StorageDriver, job: ClaimedJob, size: int | None, grant: Grant) -> Payload:
    """Grow the file system of a volume whose bytes are published, if the job says so; return what was made."""
    filesystem = job.params.get(GROW_FILESYSTEM)
    if filesystem is None or size is None:
        return {"size": size}
    return {"size": size, **await grow(driver, volume_of(job), filesystem, size, grant)}
