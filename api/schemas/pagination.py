"""Lists: the query parameters of a page, and the response."""

import json
from collections.abc import Callable
from typing import Annotated, Any, Generic, TypeVar
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, model_validator

from api.schemas.base import MAX_MEMBERS, Omittable, refuse_more
from domain.db.pagination import DEFAULT_LIMIT, MAX_LIMIT, Page, PageRequest, Row

Schema = TypeVar("Schema", bound=BaseModel)


class PageQuery(BaseModel):
    """Parameters of every list; subclasses add filters. Unknown parameters are rejected."""

    model_config = ConfigDict(extra="forbid")

    limit: Annotated[
        int, Field(ge=1, description=f"Maximum number of items; values above {MAX_LIMIT} are lowered to {MAX_LIMIT}.")
    ] = DEFAULT_LIMIT
    cursor: Annotated[
        Omittable[str],
        Field(description="`next_cursor` of the previous page; valid only for the same list and filters."),
    ] = None

    @model_validator(mode="before")
    @classmethod
    def _not_too_many(cls, value: dict[str, Any]) -> dict[str, Any]:
        return refuse_more(value, MAX_MEMBERS)

    def page_of(self, name: str, project_id: UUID | None = None) -> PageRequest:
        """Request a page of the list ``name``, of a project, or of all for None.

        The scope includes the project and the filters, so a cursor is bound to them.
        """
        filters = self.model_dump(mode="json", exclude={"limit", "cursor"}, exclude_defaults=True)
        scope = json.dumps([name, str(project_id), filters], sort_keys=True)
        return PageRequest(scope=scope, limit=min(self.limit, MAX_LIMIT), cursor=self.cursor)


class Paginated(BaseModel, Generic[Schema]):
    """One page of a list."""

    items: list[Schema]
    next_cursor: str | None = Field(description="Cursor of the next page; null on the last page.")


def paginated_response(page: Page[Row], render: Callable[[Row], Schema]) -> Paginated[Schema]:
    """Render each row of a page."""
    return Paginated(items=[render(row) for row in page.items], next_cursor=page.next_cursor)
