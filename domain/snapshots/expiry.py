"""The use case of deleting what a schedule does not keep: `SnapshotService` has the others."""

from collections.abc import Collection
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession
from uuid_utils.compat import uuid7

from domain.jobs.model import Job
from domain.jobs.store.jobs import JobRepository
from domain.snapshots.model import Snapshot
from domain.snapshots.operations import SnapshotJobs
from domain.snapshots.repository import BulkSnapshotRepository
from domain.snapshots.retention import RetentionRule
from domain.snapshots.states import SnapshotState
from domain.volumes.repository import VolumeRepository


class Expiry(SnapshotJobs):
    """Deletions, asked for by a user or by a schedule."""

    async def expire(
        self,
        session: AsyncSession,
        volume_ids: Collection[UUID],
        schedule_id: UUID,
        keep: RetentionRule,
        *,
        caller: str | None,
    ) -> None:
        """Ask for the end of a schedule's own snapshots of these volumes that it does not keep.

        In the transaction that records the new ones: so nothing is deleted before, and nothing twice. Nobody has been
        told of the jobs yet; housekeeping rings them.
        """
        snapshots = BulkSnapshotRepository(session)
        found = await snapshots.expired(volume_ids, schedule_id, keep)
        if not found:
            return
        backends = await VolumeRepository(session).backends_of({snapshot.volume_id for snapshot in found})
        jobs = {one.id: uuid7() for one in found}
        await snapshots.acquire(jobs, SnapshotState.DELETING)
        await JobRepository(session).add_undispatched(
            [
                self._delete_job(one, backends[one.volume_id], jobs[one.id], fence=one.version + 1, created_by=caller)
                for one in found
            ]
        )

    def _delete_job(self, snapshot: Snapshot, backend: str, job_id: UUID, *, fence: int, **columns: Any) -> Job:
        params = {"of_volume": str(snapshot.volume_id)}
        columns |= {"job_id": job_id, "backend": backend}
        return self._job("snapshot.delete", snapshot, params, fence=fence, **columns)
