"""Lists: how a client asks for a page, and what a page looks like."""

import json
from collections.abc import Callable
from typing import Annotated, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from api.schemas.omittable import Omittable
from domain.db.pagination import DEFAULT_LIMIT, MAX_LIMIT, Page, PageRequest, Row

Shape = TypeVar("Shape", bound=BaseModel)


class PageQuery(BaseModel):
    """What every list understands; a list with filters adds them. Anything else is refused."""

    model_config = ConfigDict(extra="forbid")

    limit: Annotated[
        int, Field(ge=1, description=f"How many to show at most; more than {MAX_LIMIT} means {MAX_LIMIT}.")
    ] = DEFAULT_LIMIT
    cursor: Annotated[
        Omittable[str],
        Field(description="`next_cursor` of the page before; it fits only the same list and filters."),
    ] = None

    def page_of(self, name: str) -> PageRequest:
        """Ask for a page of the list ``name``. The filters are part of the scope, so a cursor fits no others."""
        filters = self.model_dump(mode="json", exclude={"limit", "cursor"}, exclude_defaults=True)
        scope = json.dumps([name, filters], sort_keys=True)
        return PageRequest(scope=scope, limit=min(self.limit, MAX_LIMIT), cursor=self.cursor)


class Paginated(BaseModel, Generic[Shape]):
    """One page."""

    items: list[Shape]
    next_cursor: str | None = Field(description="Asks for the next page; null on the last one.")


def paginated_response(page: Page[Row], shape: Callable[[Row], Shape]) -> Paginated[Shape]:
    """Put a page of rows into their wire shape."""
    return Paginated(items=[shape(row) for row in page.items], next_cursor=page.next_cursor)
