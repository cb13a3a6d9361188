"""Prints objects on a terminal, as text: what others wrote is no markup, and cannot move the cursor."""

import json
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from api.cli.client import JsonObject
from api.cli.columns import Columns, error_text, progress_text
from api.cli.sizes import size_text
from domain.printable import printable

#: Width of output that is not a terminal: ids must not be truncated.
_WIDTH: Final = 200
#: Titles of columns whose words have colours.
_STYLED: Final = frozenset({"status", "state", "outcome"})
#: Members of objects that are sizes in bytes.
_SIZES: Final = frozenset({"size", "used", "filesystem_size", "filesystem_used"})
_STYLES: Final = {
    "succeeded": "green",
    "started": "green",
    "available": "green",
    "ready": "green",
    "alive": "green",
    "ok": "green",
    "partial": "yellow",
    "skipped": "yellow",
    "warn": "yellow",
    "running": "cyan",
    "failed": "red",
    "missed": "red",
    "silent": "red",
    "error": "red",
    "fail": "red",
    "cancelled": "magenta",
}


def open_console() -> Console:
    """Open standard output for text from the API: no markup, no highlighting, no emoji codes."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a character that cannot be encoded must not end a watch
    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = _WIDTH
    return console


def printable_object(one: JsonObject) -> JsonObject:
    """Return an object of the API for a terminal: the control characters in all of its texts are escaped."""
    shown: JsonObject = _printable_value(one)
    return shown


def _printable_value(value: Any) -> Any:
    match value:
        case str():
            return printable(value)
        case list():
            return [*map(_printable_value, value)]
        case dict():  # an `ApiObject` remains one
            return type(value)({printable(name): _printable_value(member) for name, member in value.items()})
        case _:
            return value


def print_table(objects: Sequence[JsonObject], columns: Columns) -> None:
    """Print a line for each object, under the titles of the columns."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title, _ in columns:
        table.add_column(title, overflow="fold", no_wrap=title in {"id", "volume", "name"})
    for one in map(printable_object, objects):
        cells = ((title, render(one)) for title, render in columns)
        table.add_row(*(_styled(cell) if title in _STYLED else cell for title, cell in cells))
    open_console().print(table)


def print_members(one: JsonObject) -> None:
    """Print a line for each member of an object that has a value."""
    table = Table(show_header=False, box=None)
    for name, value in printable_object(one).items():
        if value not in (None, "", {}, []):
            text = _member_text(name, value, one)
            table.add_row(name, _styled(text) if name in _STYLED else text)
    open_console().print(table)


def _member_text(name: str, value: Any, one: JsonObject) -> str:
    if name == "progress" and "kind" in one:
        return progress_text(one)
    if name == "error" and "kind" in one:
        return printable(error_text(one))
    if name in _SIZES and isinstance(value, int):
        return f"{size_text(value)} ({value:,} bytes)"
    return value if isinstance(value, str) else json.dumps(value)


def _styled(status: str) -> Text:
    """Return a status in its colour."""
    return Text(status, _STYLES.get(status, ""))


def print_text(text: str) -> None:
    """Print a text from the API in one line, which a terminal may break."""
    open_console().print(printable(text))
