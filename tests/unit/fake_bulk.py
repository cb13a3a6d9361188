"""Fake services of bulk jobs: in memory, with the errors of the real ones."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import UUID

from domain.bulk.expand import BulkExpandRequest
from domain.bulk.model import Item, ItemStatus
from domain.bulk.preview import Plan, Preview
from domain.bulk.requests import BulkRequest
from domain.jobs.acceptance import ANONYMOUS, RequestOrigin
from domain.jobs.model import Job
from domain.volumes.filesystems.usage import VolumeUsage
from tests.unit.fake_volumes import FakeJobs, FakeVolumes, job_row


@dataclass
class FakeBulk:
    """Accepts, records and plans bulk jobs; serves ledgers that the test has filled."""

    jobs: FakeJobs
    volumes: FakeVolumes
    requests: list[BulkRequest] = field(default_factory=list)
    ledger: dict[UUID, list[Item]] = field(default_factory=dict)

    async def items(
        self, job_id: UUID, status: ItemStatus | None, *, project_id: UUID, after: UUID | None, limit: int
    ) -> Sequence[Item]:
        await self.jobs.get(job_id, project_id=project_id)
        items = sorted(self.ledger.get(job_id, ()), key=lambda item: item.volume_id)
        filtered = [item for item in items if status in (None, item.status)]
        return [item for item in filtered if after is None or item.volume_id > after][: limit + 1]

    async def request(self, request: BulkRequest, *, origin: RequestOrigin = ANONYMOUS) -> Job:
        return await self.jobs.accept(origin, self._accept(request))

    async def _accept(self, request: BulkRequest) -> Job:
        request.require_within(100)
        self.requests.append(request)
        params = request.job_params(time=datetime.now(UTC), schedule_id=None)
        return self.jobs.add(job_row(request.kind, params={**params, "fence_version": 0}))

    async def preview(self, request: BulkExpandRequest, *, project_id: UUID) -> Plan:
        request.require_within(100)
        plan = Plan(0, 0, 0, None, [])
        for volume in self.volumes.rows.values():
            usage = VolumeUsage(volume.used, is_new=volume.used_at is None)
            plan.items.append(Preview.of(volume, usage, request.policy))
        growing = [item for item in plan.items if item.to_size is not None]
        growth = sum((item.to_size or 0) - item.from_size for item in growing)
        unmeasured = sum(item.awaits_measurement for item in plan.items)
        return Plan(len(plan.items), len(growing), growth, None, plan.items[:1000], unmeasured)
