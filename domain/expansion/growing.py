"""What lanes of a bulk expansion do with their volumes: measure them, decide, grow them."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from domain.bulk.ledger import Entry, Lane, Line
from domain.bulk.operation import Result, Task
from domain.bulk.states import Code, ItemStatus, ending_of
from domain.database import Database
from domain.errors import CisternError
from domain.expansion.policy import Policy, read_policy
from domain.storage.backends import Backends
from domain.storage.driver import Grant, Usage
from domain.volumes.repository import Ending, Held, VolumeRepository
from domain.volumes.states import VolumeState


class Growing:
    """An `Operation`: each volume grows to the size that was written down for it."""

    state: Final = VolumeState.EXPANDING
    done: Final = Code.EXPANDED

    def __init__(self, database: Database, backends: Backends) -> None:
        self._database = database
        self._backends = backends

    def terms(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Lanes decide by the policy."""
        return {"policy": params["policy"]}

    def measures(self, params: Mapping[str, Any]) -> bool:
        """A threshold is about what is in use; without one nobody asks."""
        return read_policy(params["policy"]).measures

    async def measure(self, items: Sequence[Line]) -> dict[UUID, int]:
        """Measure how many bytes of each volume are allocated; what cannot be measured is left out."""
        async with self._database.transaction() as session:
            places = await VolumeRepository(session).places([item.volume_id for item in items])
        measured = await asyncio.gather(*(self._measured(backend, places) for backend in set(places.values())))
        return {volume_id: usage.used for found in measured for volume_id, usage in found.items()}

    async def decide(
        self, session: AsyncSession, lane: Lane, volumes: Sequence[tuple[Line, Held]], used: Mapping[UUID, int]
    ) -> list[Entry]:
        """Decide which volumes shall grow, and to which size."""
        policy = read_policy(lane.params["policy"])
        await VolumeRepository(session).note_usage(used)
        return [_decide(item, volume, policy, used.get(item.volume_id)) for item, volume in volumes]

    async def begin(
        self, _: AsyncSession, __: Lane, volumes: Sequence[tuple[Entry, Held]], fresh: Mapping[UUID, int]
    ) -> list[Task]:
        """Write nothing down but the sizes, which the entries have."""
        return [
            Task(entry, volume.backend, fresh.get(volume.id, volume.version), begun=volume.id not in fresh)
            for entry, volume in volumes
        ]

    async def do(self, task: Task, grant: Grant) -> int:
        """Grow a volume on its backend."""
        if task.entry.to_size is None:
            raise RuntimeError(f"volume {task.volume_id} was taken without a size to grow to")
        return await self._backends.reach(task.backend).expand(task.volume_id, task.entry.to_size, grant)

    async def seal(self, task: Task, entry: Entry, grant: Grant) -> Result:
        """See how large the volume is, now that nobody can grow it any more."""
        return Result(entry, await self._backends.reach(task.backend).seal(task.volume_id, grant))

    async def record(
        self, session: AsyncSession, lane: Lane, items: Sequence[Entry], sizes: Mapping[UUID, int | None]
    ) -> None:
        """The volumes have the sizes that their backends report."""
        endings = [Ending(item.volume_id, lane.job_id, sizes[item.volume_id]) for item in items]
        await VolumeRepository(session).let_go(endings, VolumeState.AVAILABLE)

    async def renew(self, session: AsyncSession, job_id: UUID, items: Sequence[Line]) -> None:
        """It is the volumes that are published."""
        await VolumeRepository(session).raise_versions([item.volume_id for item in items], job_id)

    async def forsake(self, session: AsyncSession, job_id: UUID, items: Sequence[Line]) -> None:
        """The volumes have the sizes that they had."""
        endings = [Ending(item.volume_id, job_id, None) for item in items]
        await VolumeRepository(session).let_go(endings, VolumeState.AVAILABLE)

    async def _measured(self, backend: str, places: Mapping[UUID, str]) -> Mapping[UUID, Usage]:
        """Measure all that are on one backend, by one call."""
        try:
            here = [volume_id for volume_id, place in places.items() if place == backend]
            return await self._backends.reach(backend).measure(here)
        except CisternError:
            return {}  # if it matters, growing the volumes will say why


def _decide(item: Line, volume: Held, policy: Policy, used: int | None) -> Entry:
    """Decide about one volume, whose row is locked."""
    if item.to_size is None:
        wanted = policy.decide(volume.size, used, volume.autogrow)
    else:
        wanted = _binding(item.to_size, volume.size)
    if isinstance(wanted, Code):
        return Entry(item.volume_id, ending_of(wanted), wanted, from_size=volume.size, used=used)
    return Entry(item.volume_id, ItemStatus.CLAIMED, from_size=volume.size, to_size=wanted, used=used)


def _binding(to_size: int, size: int) -> int | Code:
    """A size that was written down before, by a job of which this one is the retry."""
    return to_size if to_size > size else Code.ALREADY_THERE
