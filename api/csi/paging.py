"""Lists, page by page: the cursor of the API is the token of the interface."""

from typing import Any, Final

from api.cli.client import JsonObject
from api.csi.api import Api
from api.csi.errors import invalid

_PAGE_SIZE: Final = 200


def page_of(api: Api, path: str, max_entries: int, token: str, **filters: Any) -> tuple[list[JsonObject], str]:
    """Return the objects of a page, and the token of the next one; empty after the last. All filters must match.

    Raises:
        CallRejected: the number is negative.
    """
    if max_entries < 0:
        raise invalid("max_entries is negative")
    cursor = {"cursor": token} if token else {}
    page = api.get(path, limit=max_entries or _PAGE_SIZE, **cursor, **filters)
    return page["items"], page["next_cursor"] or ""
