"""The commands ``cistern keys ...`` work on the database itself, and print a key once."""

import asyncio
import json
import sys
from pathlib import Path

import pytest

from api.cli.app import main
from api.cli.key_commands import create_first_key
from api.cli.key_file import read_key_file
from domain.access.model import Role
from domain.projects.model import ProjectRef
from domain.projects.service import NewProject
from domain.services import Services
from domain.settings import Settings
from tests.support import keys
from tests.support.databases import run


@pytest.fixture
def cistern(services: Services, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    """Run a command on the database of the test; returns its exit status, stdout and stderr."""
    monkeypatch.setenv("CISTERN_DATABASE_URL", services.settings.database_url)

    def run_command(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cistern", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return lambda *arguments: asyncio.to_thread(run_command, *arguments)


@pytest.mark.prints_key
async def test_key_is_created_listed_replaced_and_revoked(services: Services, cistern) -> None:  # type: ignore[no-untyped-def]
    status, out, err = await cistern("keys", "create", "backup", "--role", "operator", "--days", "7")
    principal = await services.keys.authenticate(out.strip())
    assert (status, principal and (principal.name, principal.role)) == (0, ("backup", Role.OPERATOR))
    assert out.strip() not in err

    _, listed, _ = await cistern("keys", "list", "--json")
    rows = [json.loads(line) for line in listed.splitlines()]
    assert {(row["name"], row["role"]) for row in rows} == {("backup", "operator"), (keys.NAME, "system")}
    (backup,) = [row["id"] for row in rows if row["name"] == "backup"]
    assert out.strip()[15:] not in listed

    _, replaced, _ = await cistern("keys", "rotate", backup, "--overlap-hours", "1")
    assert await services.keys.authenticate(replaced.strip())

    assert (await cistern("keys", "revoke", backup))[0] == 2, "nobody can be asked"
    revoked = await cistern("keys", "revoke", backup, "--yes", "--json")
    assert (revoked[0], json.loads(revoked[1])["revoked_at"] is None) == (0, False)
    _, table, _ = await cistern("keys", "list")
    assert "revoked" in table


@pytest.mark.prints_key
async def test_key_is_found_by_its_name_or_the_beginning_of_its_id(services: Services, cistern) -> None:  # type: ignore[no-untyped-def]
    _, created, _ = await cistern("keys", "create", "backup", "--role", "viewer", "--json")
    key = json.loads(created)
    _, rotated, _ = await cistern("keys", "rotate", "backup", "--json")
    status, _, err = await cistern("keys", "revoke", "backup", "--yes")
    assert (status, key["id"] in err, json.loads(rotated)["id"] in err) == (2, True, True), "two keys have the name"

    assert (await cistern("keys", "revoke", key["id"][:23], "--yes"))[0] == 0
    assert await services.keys.authenticate(key["key"]) is None
    assert (await cistern("keys", "revoke", "backup", "--yes"))[0] == 0, "the name is that of the other one now"
    assert await services.keys.authenticate(json.loads(rotated)["key"]) is None


@pytest.mark.prints_key
async def test_key_is_made_for_a_project(services: Services, cistern) -> None:  # type: ignore[no-untyped-def]
    project, _ = await services.projects.create(NewProject("search"))
    status, out, _ = await cistern("keys", "create", "alice", "--role", "owner", "--project", "search")
    principal = await services.keys.authenticate(out.strip())
    unknown = await cistern("keys", "create", "alice", "--role", "owner", "--project", "serch")

    assert (status, principal and principal.project) == (0, ProjectRef(project.id, "search", is_limited=False))
    assert (unknown[0], unknown[1]) == (2, "")
    assert "no project named 'serch'" in unknown[2]


async def test_unknown_key_is_one_line(cistern) -> None:  # type: ignore[no-untyped-def]
    status, out, err = await cistern("keys", "revoke", "00000000-0000-7000-8000-000000000000", "--yes")

    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert "there is no key with the name, id or beginning of an id" in err


async def test_first_key_is_made_once_and_written_for_the_user(
    settings: Settings, services: Services, tmp_path: Path
) -> None:
    await asyncio.to_thread(run, settings.database_url, "DELETE FROM api_keys")
    try:
        await asyncio.to_thread(create_first_key, settings)
        first = read_key_file(tmp_path)
        await asyncio.to_thread(create_first_key, settings)
        assert first == read_key_file(tmp_path)
        principal = await services.keys.authenticate(first or "")
        assert principal is not None
        assert (principal.name, principal.role) == ("admin", Role.SYSTEM)
    finally:
        await asyncio.to_thread(run, settings.database_url, keys.INSERT)
