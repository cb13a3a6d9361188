"""The use case: run all checks once, in an order in which each repair helps the next check."""

from collections.abc import AsyncIterator

from domain.check.findings import Finding, Report
from domain.check.ledgers import Ledgers
from domain.check.live_jobs import LiveJobs
from domain.check.repair import Repair
from domain.check.rows_vs_storage import RowsVsStorage
from domain.check.unknown_data import UnknownData
from domain.db.database import Database
from domain.jobs.kinds import JobHandlers
from domain.storage.backends import Backends


class Check:
    """Compares rows, ledgers and storage. Requires PostgreSQL and the backends; Redis and workers may be down."""

    def __init__(self, database: Database, backends: Backends, handlers: JobHandlers, *, lease: float) -> None:
        """``lease`` in seconds: how long a worker that does not renew keeps its jobs."""
        self._database = database
        self._backends = backends
        self._handlers = handlers
        self._lease = lease

    async def report(self, *, repair: bool = False) -> Report:
        """Check everything, and repair what is safe to repair if ``repair``.

        Raises:
            DatabaseUnavailable: PostgreSQL does not respond.
        """
        report = Report()
        async for finding in self.findings(report, repair=repair):
            report.findings.append(finding)
        return report

    async def findings(self, report: Report, *, repair: bool = False) -> AsyncIterator[Finding]:
        """Yield each finding as it is made. ``report`` only receives the number of things checked."""
        for check in self._checks():
            async for finding in check.findings(report, repair=repair):
                yield finding

    def _checks(self) -> tuple[LiveJobs, Ledgers, RowsVsStorage, UnknownData]:
        """Return all checks in the order in which they run."""
        database, backends = self._database, self._backends
        repair = Repair(database, backends)
        return (
            LiveJobs(database, self._handlers, lease=self._lease),
            Ledgers(database),
            RowsVsStorage(database, backends, repair),
            UnknownData(database, backends, repair),
        )
