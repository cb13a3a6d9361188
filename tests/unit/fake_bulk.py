"""Bulk jobs in memory, as strict as the real ones."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

from domain.bulk.expand.policy import BulkExpandRequest
from domain.bulk.expand.service import Plan, Preview
from domain.bulk.model import Item
from domain.bulk.selection import require_within
from domain.bulk.snapshot.request import BulkSnapshotRequest
from domain.bulk.states import ItemCode, ItemStatus
from domain.jobs.idempotency import ANONYMOUS, RequestOrigin
from domain.jobs.model import Job
from tests.unit.fake_volumes import FakeJobs, FakeVolumes, job_row


@dataclass
class FakeBulk:
    """Ledgers that a test writes itself."""

    jobs: FakeJobs
    ledger: dict[UUID, list[Item]] = field(default_factory=dict)

    async def items(self, job_id: UUID, status: ItemStatus | None, *, after: UUID | None, limit: int) -> Sequence[Item]:
        await self.jobs.get(job_id)
        items = sorted(self.ledger.get(job_id, ()), key=lambda item: item.volume_id)
        wanted = [item for item in items if status in (None, item.status)]
        return [item for item in wanted if after is None or item.volume_id > after][: limit + 1]


@dataclass
class FakeBulkSnapshots:
    """Bulk snapshots that are accepted."""

    jobs: FakeJobs
    asked: list[BulkSnapshotRequest] = field(default_factory=list)

    async def request_snapshots(self, wanted: BulkSnapshotRequest, *, origin: RequestOrigin = ANONYMOUS) -> Job:
        return await self.jobs.accept(origin, self._take(wanted))

    async def _take(self, wanted: BulkSnapshotRequest) -> Job:
        require_within(wanted.max_concurrent, 100)
        self.asked.append(wanted)
        return self.jobs.add(job_row("bulk.snapshot", params={**wanted.to_json(), "fence": 0}))


@dataclass
class FakeExpansion:
    """Bulk expansions that are accepted and planned."""

    jobs: FakeJobs
    volumes: FakeVolumes
    asked: list[BulkExpandRequest] = field(default_factory=list)

    async def request_expand(self, wanted: BulkExpandRequest, *, origin: RequestOrigin = ANONYMOUS) -> Job:
        return await self.jobs.accept(origin, self._expand(wanted))

    async def _expand(self, wanted: BulkExpandRequest) -> Job:
        self._check(wanted)
        self.asked.append(wanted)
        return self.jobs.add(job_row("bulk.expand", params={**wanted.to_json(), "fence": 0}))

    async def preview(self, wanted: BulkExpandRequest) -> Plan:
        self._check(wanted)
        plan = Plan(0, 0, 0, None, [])
        for volume in self.volumes.rows.values():
            decision = wanted.policy.decide(volume.size, volume.used, volume.autogrow)
            code, to_size = (decision, None) if isinstance(decision, ItemCode) else (None, decision)
            plan.items.append(Preview(volume.id, volume.name, volume.size, to_size, code, volume.used, volume.used_at))
        growing = [item for item in plan.items if item.to_size is not None]
        growth = sum((item.to_size or 0) - item.from_size for item in growing)
        return Plan(len(plan.items), len(growing), growth, None, plan.items[:1000])

    def _check(self, wanted: BulkExpandRequest) -> None:
        require_within(wanted.max_concurrent, 100)
