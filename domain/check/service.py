"""The use case: run all checks once, in an order in which each repair helps the next check."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Final

from domain.check.attachments import Attachments, HostView
from domain.check.findings import CheckCode, Finding
from domain.check.jobs import Ledgers, LiveJobs
from domain.check.repair import Repair
from domain.check.rows import RowReader
from domain.check.rows_vs_storage import RowsVsStorage, UnknownData
from domain.db.database import Database
from domain.jobs.kinds import JobHandlers
from domain.storage.backends import Backends

#: Maximum time that a repair waits for leases, in leases: a worker that lives extends its own all the time.
_MAX_LEASES: Final = 4
#: How long it waits after the end of a lease.
_MARGIN_SECONDS: Final = 0.2


class Check:
    """Compares rows, ledgers and storage. Requires PostgreSQL and the backends; Redis and workers may be down."""

    def __init__(
        self,
        database: Database,
        backends: Backends,
        handlers: JobHandlers,
        *,
        lease: float,
        host: HostView | None = None,
    ) -> None:
        """``lease`` in seconds: how long a worker that does not renew keeps its jobs. ``host``: this one, if a node."""
        self._lease = lease
        rows, repair = RowReader(database), Repair(database, backends)
        self._checks = (
            LiveJobs(database, handlers, lease=lease),
            Ledgers(database),
            RowsVsStorage(rows, backends, repair),
            UnknownData(rows, backends, repair),
            Attachments(database, lease=lease, host=host),
        )

    async def findings(
        self, checked: Counter[str], *, repair: bool = False, on_wait: Callable[[float], None] = lambda _: None
    ) -> AsyncIterator[Finding]:
        """Check everything and yield each finding as it is made, repaired if ``repair`` and if that is safe.

        A repair waits for the leases of workers that may be dead, and then tries again what they have held up;
        ``on_wait`` is called with the number of seconds. ``checked`` counts the things checked, by name.

        Raises:
            DatabaseUnavailable: PostgreSQL does not respond.
        """
        leased, seen = 0.0, set[tuple[CheckCode, str]]()
        async for finding in self._once(checked, repair=repair):
            if repair and finding.leased_seconds:
                leased = max(leased, finding.leased_seconds)
                continue
            seen.add((finding.code, finding.subject))
            yield finding
        if leased:
            seconds = min(leased, _MAX_LEASES * self._lease) + _MARGIN_SECONDS
            on_wait(seconds)
            await asyncio.sleep(seconds)
            async for finding in self._once(Counter(), repair=True):
                if finding.repaired or (finding.code, finding.subject) not in seen:
                    yield finding

    async def _once(self, checked: Counter[str], *, repair: bool) -> AsyncIterator[Finding]:
        for check in self._checks:
            async for finding in check.findings(checked, repair=repair):
                yield finding
