"""Templates: their environment, the filters that they use, and the response with a page."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse

from api.dashboard.views.schedules import cron_words
from api.dashboard.views.viewer import Viewer
from api.dashboard.views.words import CONSISTENCY_WORDS, KIND_WORDS, STATUS_TONES
from api.job_codes import ALL_EXPLANATIONS
from domain.jobs.store.overview import Count
from domain.printable import printable

#: Shown for what is not known.
_NOTHING: Final = "\N{EN DASH}"
_KIB: Final = 1024
_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")
_HUNDRED: Final = 100
#: The units of a length of time, in seconds, with their short names.
_LENGTHS: Final = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))
_MILLISECONDS: Final = 1000
_SHORT_ID: Final = 8


def size_text(size: int | None) -> str:
    """Return a size for people, such as ``10 GiB``; one that is not known is a dash."""
    if size is None:
        return _NOTHING
    value, unit = float(size), 0
    while value >= _KIB and unit < len(_UNITS) - 1:
        value, unit = value / _KIB, unit + 1
    return f"{value:.0f} {_UNITS[unit]}" if value >= _HUNDRED or value == int(value) else f"{value:.1f} {_UNITS[unit]}"


def exact_size(size: int) -> str:
    """Return a size that means the same when it is read again, in the largest unit of which it is a multiple."""
    unit = 0
    while size and size % _KIB == 0 and unit < len(_UNITS) - 1:
        size, unit = size // _KIB, unit + 1
    return f"{size}{_UNITS[unit]}"


def count_text(count: Count) -> str:
    """Return a number with separators, and a plus sign if there may be more."""
    return f"{count.number:,}{'+' if count.more else ''}"


def duration_text(seconds: float | timedelta | None) -> str:
    """Return a length of time in its two largest units, such as ``2 h 5 min``."""
    if seconds is None:
        return _NOTHING
    seconds = seconds.total_seconds() if isinstance(seconds, timedelta) else seconds
    if seconds < 1:
        return f"{max(0.0, seconds) * _MILLISECONDS:.0f} ms"
    rest, parts = round(seconds), []
    for length, name in _LENGTHS:
        number, rest = divmod(rest, length)
        if number:
            parts.append(f"{number} {name}")
    return " ".join(parts[:2])


def ago_text(moment: datetime) -> str:
    """Return how long ago a time is, or how far ahead; scripts keep it up to date."""
    seconds = (datetime.now(UTC) - moment).total_seconds()
    if abs(seconds) < 1:
        return "now"
    length = duration_text(abs(seconds)).split(" ")
    text = " ".join(length[:2])
    return f"{text} ago" if seconds > 0 else f"in {text}"


def iso_text(moment: datetime) -> str:
    """Return a time as the attribute of a `time` element."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def short_id(value: UUID | str | None) -> str:
    """Return the end of an id, which tells the ids of one hour apart; their beginnings are the time."""
    return _NOTHING if value is None else str(value)[-_SHORT_ID:]


def json_text(value: Any) -> str:
    """Return a value as JSON that can be read."""
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)


def readable_text(text: str) -> str:
    """Return a text of several lines; each control character is replaced by its escape."""
    return "\n".join(map(printable, text.split("\n")))


_FILTERS: Final = {
    "ago": ago_text,
    "count": count_text,
    "cron": cron_words,
    "duration": duration_text,
    "exact_size": exact_size,
    "iso": iso_text,
    "pretty": json_text,
    "printable": printable,
    "readable": readable_text,
    "short": short_id,
    "size": size_text,
}
_templates: Final = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    auto_reload=False,
)
_templates.filters.update(_FILTERS)
_templates.globals.update(kind_words=KIND_WORDS, status_tones=STATUS_TONES, explained=ALL_EXPLANATIONS)
_templates.globals.update(consistency_words=CONSISTENCY_WORDS)


def page(
    request: Request, template: str, status: int = 200, *, headers: Mapping[str, str] | None = None, **values: Any
) -> HTMLResponse:
    """Return a page. No browser keeps it: it shows the present state, to a viewer who has signed in."""
    principal = getattr(request.state, "principal", None)
    viewer = None if principal is None else Viewer.of(principal)
    text = _templates.get_template(template).render(viewer=viewer, path=request.url.path, **values)
    return HTMLResponse(text, status, headers={"Cache-Control": "no-store", **(headers or {})})
