"""How large the body of a request may be, by its route: only a list of ids needs more than some KiB.

The body is limited before anything reads it, because parsing a megabyte of nonsense takes time from everybody.
"""

import re
from typing import Final

from api.acceptance import SCHEDULES_PATH

#: Sizes in KiB.
_SMALL, _LARGE = 64, 1024
#: The routes whose body may have `ids`, as a member or in the `params` of a schedule.
_ROUTES_WITH_IDS: Final = re.compile(
    rf"POST /api/v[01]/volumes/expand|POST /api/v1/volumes/snapshots|(POST|PATCH) {SCHEDULES_PATH}(/[^/]+)?"
)


def max_body_kib(method: str, path: str) -> int:
    """Return the maximum size of a request's body in KiB."""
    return _LARGE if _ROUTES_WITH_IDS.fullmatch(f"{method} {path}") else _SMALL
