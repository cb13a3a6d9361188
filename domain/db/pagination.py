"""Keyset pagination with opaque cursors: newest first by time-ordered ids (UUIDv7), or in ascending order of an id."""

import hashlib
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Final, Generic, TypeVar
from uuid import UUID

from domain.db.base import Base
from domain.errors import BadCursor

DEFAULT_LIMIT: Final = 50
MAX_LIMIT: Final = 200
_DIGEST_BYTES: Final = 8

Row = TypeVar("Row", bound=Base)


@dataclass(frozen=True)
class Page(Generic[Row]):
    """The rows of one page, and the cursor of the next page; None on the last page."""

    items: list[Row]
    next_cursor: str | None


@dataclass(frozen=True)
class PageRequest:
    """The limit and the start of a page. ``scope`` names the list and its filters: a cursor is valid only there."""

    scope: str
    limit: int = DEFAULT_LIMIT
    cursor: str | None = None

    @property
    def before(self) -> UUID | None:
        """The id below which this page starts; None for the first page.

        Raises:
            BadCursor: the cursor does not belong to this list.
        """
        if self.cursor is None:
            return None
        try:
            raw = urlsafe_b64decode(self.cursor.encode("ascii"))
            digest, last_id = raw[:_DIGEST_BYTES], UUID(bytes=raw[_DIGEST_BYTES:])
        except ValueError as error:
            raise BadCursor(field="cursor") from error
        if digest != _digest(self.scope):
            raise BadCursor(field="cursor")
        return last_id

    @property
    def after(self) -> UUID | None:
        """The id above which this page starts, in a list in ascending order; None for the first page.

        Raises:
            BadCursor: the cursor does not belong to this list.
        """
        return self.before

    def continued_below(self, last_id: UUID) -> str:
        """Return the cursor of a page that starts below an id, for a list that has been looked through down to it."""
        return _cursor(self.scope, last_id)

    def page(self, rows: Sequence[Row], *, by: Callable[[Row], UUID] = attrgetter("id")) -> Page[Row]:
        """Make a page of ``rows``. One row more than the limit means that there is another page.

        ``by`` returns the id that the list is ordered by.
        """
        items = list(rows[: self.limit])
        has_next = len(rows) > self.limit
        return Page(items, _cursor(self.scope, by(items[-1])) if has_next else None)


def _digest(scope: str) -> bytes:
    return hashlib.sha256(scope.encode()).digest()[:_DIGEST_BYTES]


def _cursor(scope: str, last_id: UUID) -> str:
    return urlsafe_b64encode(_digest(scope) + last_id.bytes).decode("ascii")
