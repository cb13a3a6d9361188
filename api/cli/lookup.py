"""Finds the object that a person means: by its name, its id, or the beginning of its id if that is unique."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple
from uuid import UUID

from api.cli.client import ApiClient, CommandFailed, JsonObject

_ID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_PREFIX: Final = re.compile(r"[0-9a-f][0-9a-f-]{3,35}", re.IGNORECASE)
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
#: Maximum number of objects that an error names.
_MAX_CANDIDATES: Final = 10


class Kind(NamedTuple):
    """A kind of objects: the path of their list, what one is called, and whether it can be looked up by a name."""

    path: str
    noun: str
    has_names: bool = True


VOLUME: Final = Kind("/volumes", "volume")
SNAPSHOT: Final = Kind("/snapshots", "snapshot")
SCHEDULE: Final = Kind("/schedules", "schedule")
KEY: Final = Kind("/keys", "key")
JOB: Final = Kind("/jobs", "job", has_names=False)


def find_id(api: ApiClient, kind: Kind, text: str, **filters: Any) -> str:
    """Return the id of the object that ``text`` names, among those that match the filters.

    Raises:
        CommandFailed: there is none, or more than one.
    """
    if _ID.fullmatch(text):
        return str(UUID(text))
    found: list[JsonObject] = []
    if kind.has_names and _NAME.fullmatch(text):
        found = _list(api, kind, **filters, name=text)
    if not found and _PREFIX.fullmatch(text):
        found = _list(api, kind, **filters, id_prefix=text)
    return _only(text, kind, [(one["id"], _description(one)) for one in found])


def find_key_id(text: str, ids: Iterable[str], names: Mapping[str, str]) -> str:
    """Return that one of ``ids`` that ``text`` names; ``names`` are those of the keys that are not revoked.

    Raises:
        CommandFailed: there is none, or more than one.
    """
    found = [one for one in ids if one == text.lower()] or [one for one, name in names.items() if name == text]
    if not found and _PREFIX.fullmatch(text):
        found = [one for one in ids if one.replace("-", "").startswith(text.lower().replace("-", ""))]
    return _only(text, KEY, [(one, names.get(one, "revoked")) for one in found])


def path_of(api: ApiClient, kind: Kind, text: str) -> str:
    """Return the path of the object that ``text`` names.

    Raises:
        CommandFailed: as `find_id`.
    """
    return f"{kind.path}/{find_id(api, kind, text)}"


def find_snapshot_id(api: ApiClient, text: str) -> str:
    """Return the id of a snapshot, which may also be named VOLUME/NAME: its name is unique in its volume only.

    Raises:
        CommandFailed: as `find_id`.
    """
    volume, slash, name = text.partition("/")
    if not slash:
        return find_id(api, SNAPSHOT, text)
    return find_id(api, SNAPSHOT, name, volume_id=find_id(api, VOLUME, volume))


def _list(api: ApiClient, kind: Kind, **filters: Any) -> list[JsonObject]:
    return api.list_first(kind.path, _MAX_CANDIDATES + 1, **filters).items


def _only(text: str, kind: Kind, found: Sequence[tuple[str, str]]) -> str:
    """Return the id of the only object found; each is an id and a description."""
    if not found:
        known_by = "name, id or beginning of an id" if kind.has_names else "id or beginning of an id"
        raise CommandFailed(f"there is no {kind.noun} with the {known_by} {text!r}")
    if len(found) > 1:
        shown = ", ".join(f"{one} ({description})" for one, description in found[:_MAX_CANDIDATES])
        more = " and more" if len(found) > _MAX_CANDIDATES else ""
        raise CommandFailed(f"{text!r} may be any of these, give an id: {shown}{more}")
    return found[0][0]


def _description(one: JsonObject) -> str:
    if "name" not in one:
        return f"{one['kind']} {one['status']}"
    return f"{one['name']} of volume {one['volume_id']}" if "volume_id" in one else str(one["name"])
