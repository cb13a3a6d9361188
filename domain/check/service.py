"""The use case: run all checks once, in an order in which each repair helps the next check."""

from collections import Counter
from collections.abc import AsyncIterator

from domain.check.findings import Finding
from domain.check.jobs import Ledgers, LiveJobs
from domain.check.repair import Repair
from domain.check.rows import RowReader
from domain.check.rows_vs_storage import RowsVsStorage, UnknownData
from domain.db.database import Database
from domain.jobs.kinds import JobHandlers
from domain.storage.backends import Backends


class Check:
    """Compares rows, ledgers and storage. Requires PostgreSQL and the backends; Redis and workers may be down."""

    def __init__(self, database: Database, backends: Backends, handlers: JobHandlers, *, lease: float) -> None:
        """``lease`` in seconds: how long a worker that does not renew keeps its jobs."""
        rows, repair = RowReader(database), Repair(database, backends)
        self._checks = (
            LiveJobs(database, handlers, lease=lease),
            Ledgers(database),
            RowsVsStorage(rows, backends, repair),
            UnknownData(rows, backends, repair),
        )

    async def findings(self, checked: Counter[str], *, repair: bool = False) -> AsyncIterator[Finding]:
        """Check everything and yield each finding as it is made, repaired if ``repair`` and if that is safe.

        ``checked`` counts the things checked, by name.

        Raises:
            DatabaseUnavailable: PostgreSQL does not respond.
        """
        for check in self._checks:
            async for finding in check.findings(checked, repair=repair):
                yield finding
