"""The commands ``cistern keys ...``, which work on the database itself: they also make the first key."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Annotated, Final, TypeVar
from uuid import UUID

import typer

from api.cli.key_file import write_key_file
from api.cli.render import keys_table, open_console
from api.schemas.keys import KeyOut
from domain.access.model import Role
from domain.access.repository import ALL_KEYS
from domain.access.service import CreatedKey, NewKey
from domain.audit.model import Actor
from domain.db.pagination import MAX_LIMIT, PageRequest
from domain.errors import ConfigurationError
from domain.services import Access, open_access
from domain.settings import Settings, load_settings

Result = TypeVar("Result")

_FIRST_KEY: Final = NewKey("admin", Role.SYSTEM)
_ACTOR: Final = Actor("cistern keys")

KeyId = Annotated[UUID, typer.Argument(metavar="ID")]

keys = typer.Typer(
    help="Create, list, replace and revoke keys of the API; needs CISTERN_DATABASE_URL.",
    add_completion=False,
    no_args_is_help=True,
)


@keys.command()
def create(
    name: Annotated[str, typer.Argument(help="Who uses the key.")],
    *,
    role: Annotated[Role, typer.Option(help="What the key may do.")],
    project: Annotated[str, typer.Option(envvar="CISTERN_PROJECT", help="What the key is for.")] = "default",
    days: Annotated[
        int | None, typer.Option(min=1, max=3650, help="Days until it expires.", show_default="never")
    ] = None,
) -> None:
    """Create a key and print it. It is not stored, and cannot be shown again."""
    new = NewKey(name, role, None if days is None else timedelta(days=days))

    async def create_in_project(access: Access) -> CreatedKey:
        found = await access.projects.find(project)
        if found is None:
            raise ConfigurationError(f"there is no project named {project!r}: `cistern projects create` makes one")
        return await access.keys.create(new, actor=replace(_ACTOR, project_id=found.id))

    _print_created(_run(create_in_project))


@keys.command("list")
def list_keys(
    *, as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False
) -> None:
    """List the keys, newest first; not their texts."""
    page = _run(lambda access: access.keys.list_keys(PageRequest(scope="keys", limit=MAX_LIMIT), ALL_KEYS))
    rows = [KeyOut.from_row(key).model_dump(mode="json") for key in page.items]
    if as_json:
        for row in rows:
            typer.echo(json.dumps(row))
    else:
        open_console().print(keys_table(rows))


@keys.command()
def rotate(
    key_id: KeyId,
    *,
    overlap_hours: Annotated[int, typer.Option(min=0, max=720, help="Hours for which the old key stays valid.")] = 24,
) -> None:
    """Create a key with the same name, role and project, and print it; the old one expires later."""
    overlap = timedelta(hours=overlap_hours)
    _print_created(_run(lambda access: access.keys.rotate(key_id, overlap=overlap, actor=_ACTOR)))


@keys.command()
def revoke(key_id: KeyId) -> None:
    """Revoke a key for good."""
    _run(lambda access: access.keys.revoke(key_id, actor=_ACTOR))


def _run(work: Callable[[Access], Awaitable[Result]]) -> Result:
    async def run() -> Result:
        async with open_access(load_settings()) as access:
            return await work(access)

    return asyncio.run(run())


def _print_created(created: CreatedKey) -> None:
    typer.echo(f"Key {created.key.id} of {created.key.name}, role {created.key.role}:", err=True)
    typer.echo(created.text)


def create_first_key(settings: Settings) -> None:
    """Make a system key for the user of `cistern up` if there is no key yet, and write it to DATA_DIR/key."""

    async def create_if_none() -> CreatedKey | None:
        async with open_access(settings) as access:
            return None if await access.keys.any() else await access.keys.create(_FIRST_KEY, actor=Actor("cistern up"))

    if created := asyncio.run(create_if_none()):
        write_key_file(settings.data_dir, created.text)
