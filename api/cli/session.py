"""What all client commands share: their options, and the session of one run."""

import inspect
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Any, Final

import typer

from api.cli.client import ApiCallFailed, ApiClient, ApiObject, CommandFailed, JsonObject, open_api
from api.cli.columns import VOLUME, Columns
from domain.printable import printable

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object per line, as the API returns it.")]
Url = Annotated[str, typer.Option(envvar="CISTERN_URL", help="URL of the API.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]
NewNameOption = Annotated[str | None, typer.Option("--name", help="The new name.", metavar="NEW")]
Label = Annotated[list[str] | None, typer.Option(help="A label; repeatable.", metavar="KEY=VALUE")]

#: Number of volumes that one request names.
_MAX_IDS: Final = 100


class UsageError(CommandFailed):
    """The command cannot be used so."""

    code = "usage"


@dataclass(frozen=True)
class Session:
    """One run of a command: the API that it calls, and how it prints the objects."""

    api: ApiClient
    as_json: bool

    def print(self, objects: Sequence[JsonObject], columns: Columns) -> None:
        """Print objects as a table, or as one line of JSON each."""
        named = objects if self.as_json else self._with_volume_names(objects, columns)
        print_objects(named, columns, as_json=self.as_json)

    def print_list(self, path: str, limit: int, columns: Columns, **filters: Any) -> None:
        """Print up to ``limit`` objects of a list, and say if there are more."""
        listing = self.api.list_first(path, limit, **filters)
        self.print(listing.items, columns)
        if listing.has_more:
            typer.echo(f"There are more than these {limit:,}: --limit shows more.", err=True)

    def print_members(self, one: JsonObject) -> None:
        """Print a single object: a line for each of its members, or all as one line of JSON."""
        if self.as_json:
            print_json([one])
        else:
            from api.cli.render import print_members

            volume_id = one.get("volume_id")
            name = self._volume_names([volume_id]).get(volume_id) if volume_id else None
            print_members(ApiObject({**one, VOLUME: name}))

    def _with_volume_names(self, objects: Sequence[JsonObject], columns: Columns) -> Sequence[JsonObject]:
        """Add the names of their volumes to objects that have only the ids; a volume that is gone keeps its id."""
        if VOLUME not in dict(columns):
            return objects
        names = {one["volume_id"]: one["volume_name"] for one in objects if one.get("volume_name") is not None}
        ids = {one["volume_id"] for one in objects if one["volume_id"] is not None} - names.keys()
        names |= self._volume_names(sorted(ids))
        return [ApiObject({**one, VOLUME: names.get(one["volume_id"], one["volume_id"])}) for one in objects]

    def _volume_names(self, ids: Iterable[str]) -> Mapping[str, str]:
        rest, names = iter(ids), dict[str, str]()
        with suppress(ApiCallFailed):  # what is printed may have been accepted: that must not look like a failure
            while chunk := [*islice(rest, _MAX_IDS)]:
                found = self.api.list_first("/volumes", _MAX_IDS, id=chunk).items
                names.update({volume["id"]: volume["name"] for volume in found})
        return names


def new_group() -> typer.Typer:
    """Return a group without commands, or for a single command."""
    return typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None)


def print_objects(objects: Sequence[JsonObject], columns: Columns, *, as_json: bool) -> None:
    """Print objects as a table, or as one line of JSON each."""
    if as_json:
        print_json(objects)
    else:
        from api.cli.render import print_table

        print_table(objects, columns)


def confirm(question: str, *, yes: bool) -> None:
    """Ask before something is lost, unless the user has said yes to it.

    Raises:
        UsageError: there is nobody to ask.
        typer.Exit: the answer is no; the exit status is 1.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError("nobody can be asked for confirmation: add --yes")
    if not typer.confirm(printable(question), err=True):
        raise typer.Exit(1)


def print_json(objects: Iterable[JsonObject]) -> None:
    """Print objects as one line of JSON each."""
    for one in objects:
        typer.echo(json.dumps(one))


def command(group: typer.Typer, name: str) -> Callable[[Callable[..., None]], None]:
    """Register a function as a command that has also --json and --url; its first argument is their `Session`."""

    def register(function: Callable[..., None]) -> None:
        def run(*, as_json: AsJson = False, url: Url = "http://127.0.0.1:8000", **arguments: Any) -> None:
            function(Session(open_api(url), as_json), **arguments)

        _, *parameters = inspect.signature(function).parameters.values()
        as_json, url, _ = inspect.signature(run).parameters.values()
        run.__signature__ = inspect.Signature([*parameters, as_json, url])  # type: ignore[attr-defined]
        group.command(name, help=function.__doc__)(run)

    return register


def labels_of(terms: Sequence[str] | None) -> dict[str, str]:
    """Return the labels that options name.

    Raises:
        UsageError: one is no KEY=VALUE, or a key comes twice.
    """
    labels: dict[str, str] = {}
    for term in terms or ():
        key, sign, value = term.partition("=")
        if not sign or key in labels:
            raise UsageError(f"--label {term}: " + ("its key comes twice" if sign else "it must be KEY=VALUE"))
        labels[key] = value
    return labels
