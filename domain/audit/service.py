"""The audit log, for the API and for retention."""

from domain.audit.model import AuditEntry
from domain.audit.repository import AuditFilter, page_of_entries
from domain.db.database import Database
from domain.db.pagination import Page, PageRequest


class AuditLog:
    """The audit log."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list_entries(self, filters: AuditFilter, request: PageRequest) -> Page[AuditEntry]:
        """List entries, newest first.

        Raises:
            BadCursor: the cursor belongs to another list.
        """
        before = request.before
        async with self._database.transaction() as session:
            return request.page(await page_of_entries(session, filters, before=before, limit=request.limit))
