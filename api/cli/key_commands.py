"""The commands ``cistern keys ...``, which work on the database itself: they also make the first key."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Annotated, Final, TypeVar

import typer

from api.cli.client import CommandFailed
from api.cli.columns import KEYS
from api.cli.key_file import write_key_file
from api.cli.local_settings import load_local_settings
from api.cli.lookup import find_key_id
from api.cli.session import Yes, confirm, new_group, print_json, print_objects
from api.schemas.keys import CreatedKeyOut, KeyOut
from domain.access.model import ApiKey, Role
from domain.access.repository import ALL_KEYS
from domain.access.service import CreatedKey, NewKey
from domain.audit.model import Actor
from domain.db.pagination import MAX_LIMIT, PageRequest
from domain.errors import CisternError
from domain.services import Access, open_access
from domain.settings import Settings

Result = TypeVar("Result")

_FIRST_KEY: Final = NewKey("admin", Role.SYSTEM)
_ACTOR: Final = Actor("cistern keys")

NameOrId = Annotated[str, typer.Argument(metavar="KEY", help="Name of the key, its id, or the id's beginning.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")]

keys = new_group()


@keys.command()
def create(
    name: Annotated[str, typer.Argument(help="Who uses the key.")],
    *,
    role: Annotated[Role, typer.Option(help="What the key may do.")],
    project: Annotated[str, typer.Option(envvar="CISTERN_PROJECT", help="What the key is for.")] = "default",
    days: Annotated[
        int | None, typer.Option(min=1, max=3650, help="Days until it expires.", show_default="never")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Create a key and print it. It is not stored, and cannot be shown again."""
    new = NewKey(name, role, None if days is None else timedelta(days=days))

    async def create_in_project(access: Access) -> CreatedKey:
        found = await access.projects.find(project)
        if found is None:
            raise CommandFailed(f"there is no project named {project!r}: `cistern projects create` makes one")
        return await access.keys.create(new, actor=replace(_ACTOR, project_id=found.id))

    _print_created(_run(create_in_project), as_json=as_json)


@keys.command("list")
def list_keys(*, as_json: AsJson = False) -> None:
    """List the keys, newest first; not their texts."""
    print_objects([_rendered(key) for key in _run(_all_keys)], KEYS, as_json=as_json)


@keys.command()
def rotate(
    key: NameOrId,
    *,
    overlap_hours: Annotated[int, typer.Option(min=0, max=720, help="Hours for which the old key stays valid.")] = 24,
    as_json: AsJson = False,
) -> None:
    """Create a key with the same name, role and project, and print it; the old one expires later."""
    overlap, found = timedelta(hours=overlap_hours), _find(key)
    created = _run(lambda access: access.keys.rotate(found.id, overlap=overlap, actor=_ACTOR))
    _print_created(created, as_json=as_json)


@keys.command()
def revoke(key: NameOrId, *, yes: Yes = False, as_json: AsJson = False) -> None:
    """Revoke a key for good."""
    found = _find(key)
    confirm(f"Revoke the key {found.id} of {found.name}, role {found.role}, for good?", yes=yes)
    revoked = _run(lambda access: access.keys.revoke(found.id, actor=_ACTOR))
    print_objects([_rendered(revoked)], KEYS, as_json=as_json)


def _run(work: Callable[[Access], Awaitable[Result]]) -> Result:
    async def run() -> Result:
        async with open_access(load_local_settings()[0]) as access:
            return await work(access)

    try:
        return asyncio.run(run())
    except CisternError as error:
        raise CommandFailed(error.message) from error


async def _all_keys(access: Access) -> list[ApiKey]:
    found, cursor = list[ApiKey](), None
    while True:
        page = await access.keys.list_keys(PageRequest(scope="keys", limit=MAX_LIMIT, cursor=cursor), ALL_KEYS)
        found += page.items
        if (cursor := page.next_cursor) is None:
            return found


def _find(text: str) -> ApiKey:
    """Return the key that ``text`` names. A name is that of keys that are not revoked.

    Raises:
        CommandFailed: there is none, or more than one.
    """
    found = {str(key.id): key for key in _run(_all_keys)}
    names = {identity: key.name for identity, key in found.items() if key.revoked_at is None}
    return found[find_key_id(text, found, names)]


def _rendered(key: ApiKey) -> dict[str, object]:
    return KeyOut.from_row(key).model_dump(mode="json")


def _print_created(created: CreatedKey, *, as_json: bool) -> None:
    if as_json:
        return print_json([CreatedKeyOut.from_created(created).model_dump(mode="json")])
    typer.echo(f"Key {created.key.id} of {created.key.name}, role {created.key.role}:", err=True)
    return typer.echo(created.text)


def create_first_key(settings: Settings) -> None:
    """Make a system key for the user of `cistern up` if there is no key yet, and write it to DATA_DIR/key."""

    async def create_if_none() -> CreatedKey | None:
        async with open_access(settings) as access:
            return None if await access.keys.any() else await access.keys.create(_FIRST_KEY, actor=Actor("cistern up"))

    if created := asyncio.run(create_if_none()):
        write_key_file(settings.data_dir, created.text)
