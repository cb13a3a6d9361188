"""The use case: look at everything once, in an order in which each mending helps the next look."""

from collections.abc import AsyncIterator

from domain.check.findings import Finding, Report
from domain.check.ledgers import Ledgers
from domain.check.live_jobs import LiveJobs
from domain.check.repair import Repair
from domain.check.rows_vs_storage import RowsVsStorage
from domain.check.unknown_data import UnknownData
from domain.db.database import Database
from domain.jobs.kinds import Kinds
from domain.storage.backends import Backends


class Check:
    """Rows, ledger and disk, compared. Needs PostgreSQL and the backends; Redis and workers may be there or not."""

    def __init__(self, database: Database, backends: Backends, kinds: Kinds, *, lease: float) -> None:
        """``lease`` in seconds: how long a silent worker keeps its jobs."""
        self._database = database
        self._backends = backends
        self._kinds = kinds
        self._lease = lease

    async def report(self, *, repair: bool = False) -> Report:
        """Look at everything, and mend what is safe to mend if ``repair`` is asked for.

        Raises:
            DatabaseUnavailable: PostgreSQL does not answer.
        """
        report = Report()
        async for finding in self.findings(report, repair=repair):
            report.findings.append(finding)
        return report

    async def findings(self, report: Report, *, repair: bool = False) -> AsyncIterator[Finding]:
        """Tell each finding as it is made; ``report`` counts what was looked at, and collects nothing else."""
        for look in self._passes():
            async for finding in look.findings(report, repair=repair):
                yield finding

    def _passes(self) -> tuple[LiveJobs, Ledgers, RowsVsStorage, UnknownData]:
        """What there is to look through, in this order."""
        database, backends = self._database, self._backends
        mending = Repair(database, backends)
        return (
            LiveJobs(database, self._kinds, lease=self._lease),
            Ledgers(database),
            RowsVsStorage(database, backends, mending),
            UnknownData(database, backends, mending),
        )
