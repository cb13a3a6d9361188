"""The use case: look at everything once, in an order in which each mending helps the next look."""

from collections.abc import AsyncIterator

from domain.database import Database
from domain.inspection.bookkeeping import Bookkeeping
from domain.inspection.findings import Finding, Report
from domain.inspection.mending import Mending
from domain.inspection.shelves import Shelves
from domain.inspection.strays import Strays
from domain.jobs.kinds import Kinds
from domain.storage.backends import Backends


class Inspection:
    """Rows, ledger and disk, compared. Needs PostgreSQL and the backends; Redis and workers may be there or not."""

    def __init__(self, database: Database, backends: Backends, kinds: Kinds, *, lease: float) -> None:
        """``lease`` in seconds: how long a silent worker keeps its jobs."""
        mending = Mending(database, backends)
        self._bookkeeping = Bookkeeping(database, kinds, lease=lease)
        self._database, self._backends, self._mending = database, backends, mending

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
        shelves = Shelves(self._database, self._backends, self._mending)
        strays = Strays(self._database, self._backends, self._mending)
        rounds = (self._bookkeeping.jobs, self._bookkeeping.ledgers, shelves.findings, strays.findings)
        for look in rounds:
            async for finding in look(report, repair=repair):
                yield finding
