"""What retention deletes besides jobs."""

from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy.ext.asyncio import AsyncSession

from domain.audit.repository import PRUNE_BATCH, prune_entries
from domain.jobs.store.retention import Prune, Pruned
from domain.schedules.repository import prune_runs
from domain.volumes.history.repository import prune_samples


def others_pruned(*, jobs_days: float, history_days: float, audit_days: float) -> Sequence[tuple[Prune, float]]:
    """Return what else is pruned, and after how many days."""
    return [
        (prune_runs, jobs_days),
        (prune_samples, history_days),
        (_prune_audit, audit_days),
    ]


async def _prune_audit(session: AsyncSession, *, age: timedelta) -> Pruned:
    rows = await prune_entries(session, age=age)
    return Pruned(rows, more=rows == PRUNE_BATCH)
