"""Keyset pages behind an opaque cursor: newest first over ids that grow with time (UUIDv7), or upwards over others."""

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
_MARK_BYTES: Final = 8

Row = TypeVar("Row", bound=Base)


@dataclass(frozen=True)
class Page(Generic[Row]):
    """Some rows, and the cursor of those that follow; None on the last page."""

    items: list[Row]
    next_cursor: str | None


@dataclass(frozen=True)
class PageRequest:
    """How many rows, and after which. ``scope`` names the list and its filters: a cursor fits only its own."""

    scope: str
    limit: int = DEFAULT_LIMIT
    cursor: str | None = None

    @property
    def before(self) -> UUID | None:
        """The id below which this page starts.

        Raises:
            BadCursor: this list did not give the cursor out.
        """
        if self.cursor is None:
            return None
        try:
            raw = urlsafe_b64decode(self.cursor.encode("ascii"))
            mark, key = raw[:_MARK_BYTES], UUID(bytes=raw[_MARK_BYTES:])
        except ValueError as error:
            raise BadCursor(field="cursor") from error
        if mark != _mark(self.scope):
            raise BadCursor(field="cursor")
        return key

    @property
    def after(self) -> UUID | None:
        """The id above which this page starts, in a list that goes upwards.

        Raises:
            BadCursor: this list did not give the cursor out.
        """
        return self.before

    def page(self, rows: Sequence[Row], *, by: Callable[[Row], UUID] = attrgetter("id")) -> Page[Row]:
        """Make the page of ``rows``, of which there is one more than asked for unless it is the last page.

        ``by`` tells the id that the list is ordered by.
        """
        items = list(rows[: self.limit])
        more = len(rows) > self.limit
        return Page(items, _cursor(self.scope, by(items[-1])) if more else None)


def _mark(scope: str) -> bytes:
    return hashlib.sha256(scope.encode()).digest()[:_MARK_BYTES]


def _cursor(scope: str, last: UUID) -> str:
    return urlsafe_b64encode(_mark(scope) + last.bytes).decode("ascii")
