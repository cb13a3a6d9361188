"""Roles of the API and the workers: all that Cistern does works, and nothing else does."""

import re
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest
from sqlalchemy.exc import DBAPIError

from api.cli.app import main
from domain.access.model import Role
from domain.access.service import KeyService, NewKey
from domain.bulk.expand import BulkExpandRequest, GrowthPolicy
from domain.bulk.snapshot import BulkSnapshotRequest
from domain.check.service import Check
from domain.db.database import Database
from domain.db.migrations import migrate
from domain.db.migrations.grants import Part, grant_to
from domain.embedded.servers import APPLICATION_ROLE
from domain.errors import ConfigurationError, MigrationFailed
from domain.services import Services, open_check, open_services
from domain.settings import Settings
from domain.volumes.service import NewVolume
from tests.integration.job_builders import MIB, ended
from tests.integration.test_schedules_end_to_end import NIGHTLY_EXPAND, create_schedule, run_now
from tests.support.databases import run
from tests.support.roles import ROLES, as_role
from tests.support.worker import running_worker

SECRET = "p'%s\"\\ 1"


@pytest.fixture
def limited(settings: Settings) -> Settings:
    """The settings of a worker, with its role."""
    return settings.model_copy(update={"database_url": as_role(settings.database_url, ROLES[Part.WORKER])})


@pytest.fixture
async def services(settings: Settings, limited: Settings) -> AsyncIterator[Services]:
    """The services of the API, with its role, once a worker has adopted the backend."""
    async with open_services(limited, adopt=True):
        pass
    of_api = settings.model_copy(update={"database_url": as_role(settings.database_url, ROLES[Part.API])})
    async with open_services(of_api) as services, services.watcher.watching():
        yield services


async def test_all_kinds_of_work_are_done_with_a_role_that_owns_nothing(
    services: Services, limited: Settings, client: httpx.AsyncClient
) -> None:
    async with running_worker(limited):
        volume = await ended(services, (await services.volumes.request_create(NewVolume("limited", MIB))).id)
        assert volume.volume_id is not None
        grown = await services.bulk.request(BulkExpandRequest(GrowthPolicy(by=MIB), max_concurrent=2))
        statuses = [(await ended(services, grown.id)).status]
        deleted = await services.volumes.request_delete(volume.volume_id)
        statuses += [(await ended(services, deleted.id)).status]
        await services.volumes.request_create(NewVolume("kept", MIB))
        taken = await services.bulk.request(BulkSnapshotRequest(name="before"))
        statuses += [(await ended(services, taken.id)).status]
        schedule = await create_schedule(client, NIGHTLY_EXPAND)
        statuses += [(await run_now(client, services, schedule))["status"]]
    async with open_services(limited) as of_worker:
        await of_worker.retention.prune()

    assert statuses[:3] == ["succeeded"] * 3
    assert len(statuses) == 4


async def test_check_and_its_repair_work_with_a_role_that_owns_nothing(limited: Settings) -> None:
    async with open_check(limited) as check:
        assert isinstance(check, Check)
        assert [finding async for finding in check.findings(Counter(), repair=True)] == []


NEITHER = (
    "CREATE TABLE mine (id int)",
    "COPY jobs FROM PROGRAM 'id'",
    "COPY jobs TO '/tmp/jobs'",
    "DROP TABLE jobs CASCADE",
    "TRUNCATE jobs",
    "ALTER TABLE jobs ADD mine int",
    "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "CREATE ROLE mine SUPERUSER",
    "UPDATE alembic_version SET version_num = '0'",
    "UPDATE audit_entries SET name = 'somebody else'",
    "SELECT pg_read_file('/etc/passwd')",
    "SET ROLE postgres",
)
NOT_THE_API = (
    "SELECT secret FROM webhooks",
    "SELECT * FROM webhooks",
    "DELETE FROM audit_entries",
    "DELETE FROM jobs",
    "DELETE FROM backends",
    "UPDATE workers SET heartbeat_at = now()",
    "INSERT INTO job_items SELECT * FROM job_items",
    "UPDATE installation SET id = id",
)
NOT_THE_WORKERS = (
    "SELECT digest FROM api_keys",
    "SELECT digest FROM sessions",
    "UPDATE api_keys SET role = 'system'",
    "INSERT INTO api_keys SELECT * FROM api_keys",
    "UPDATE projects SET max_volumes = NULL",
    "UPDATE webhooks SET url = 'https://elsewhere.example'",
    "DELETE FROM webhooks",
    "INSERT INTO projects (id, name) VALUES (gen_random_uuid(), 'mine')",
)


@pytest.mark.parametrize(
    ("part", "statement"),
    [
        *((part, statement) for part in Part for statement in NEITHER),
        *((Part.API, statement) for statement in NOT_THE_API),
        *((Part.WORKER, statement) for statement in NOT_THE_WORKERS),
    ],
)
def test_role_may_do_no_more_than_its_part_needs(settings: Settings, part: Part, statement: str) -> None:
    with pytest.raises(DBAPIError, match=r"permission denied|must be owner|no schema"):
        run(as_role(settings.database_url, ROLES[part]), statement)


async def test_use_of_the_role_of_another_part_is_an_error_of_one_line_that_names_the_setting(
    limited: Settings,
) -> None:
    database = Database(limited.database_url)
    try:
        with pytest.raises(ConfigurationError, match="api_keys; the role in CISTERN_DATABASE_URL is that of"):
            await KeyService(database).create(NewKey("mine", Role.SYSTEM))
    finally:
        await database.close()


def test_role_of_both_parts_may_do_what_either_needs(settings: Settings) -> None:
    grant_to(settings.database_url, APPLICATION_ROLE, [*Part])

    url = as_role(settings.database_url, APPLICATION_ROLE)
    run(url, "DELETE FROM jobs", "DELETE FROM audit_entries", "SELECT digest FROM api_keys", "DELETE FROM workers")
    run(url, "SELECT secret FROM webhooks", "DELETE FROM webhooks")
    with pytest.raises(DBAPIError, match="permission denied"):
        run(url, "UPDATE audit_entries SET name = 'somebody else'")


def test_privileges_of_a_role_that_had_more_are_revoked(settings: Settings) -> None:
    grant_to(settings.database_url, APPLICATION_ROLE, [*Part])
    grant_to(settings.database_url, APPLICATION_ROLE, [Part.API])

    with pytest.raises(DBAPIError, match="permission denied"):
        run(as_role(settings.database_url, APPLICATION_ROLE), "DELETE FROM audit_entries")


def test_tables_of_later_migrations_can_be_used_at_once(limited: Settings, settings: Settings) -> None:
    run(settings.database_url, "CREATE TABLE later (id bigserial PRIMARY KEY, name text)")

    assert run(limited.database_url, "INSERT INTO later (name) VALUES ('x') RETURNING id") == [(1,)]


Migrate = Callable[..., tuple[int, str]]


@pytest.fixture
def cistern_migrate(
    empty_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Migrate:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CISTERN_DATABASE_URL", empty_url)

    def run_command(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["cistern", "migrate", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), "".join(capsys.readouterr())

    return run_command


def test_command_creates_a_role_with_a_password_from_a_file(
    cistern_migrate: Migrate, empty_url: str, tmp_path: Path
) -> None:
    (tmp_path / "password").write_text(f"{SECRET}\n")
    options = ("--api-role", "app-role", "--api-password-file", str(tmp_path / "password"))
    try:
        assert [cistern_migrate(*options)[0] for _ in range(2)] == [0, 0]
        assert run(as_role(empty_url, "app-role"), "SELECT count(*) FROM jobs") == [(0,)]
        (verifier,) = run(empty_url, "SELECT rolpassword FROM pg_authid WHERE rolname = 'app-role'")[0]
        assert re.match(r"SCRAM-SHA-256\$", str(verifier))
    finally:
        run(empty_url, 'DROP OWNED BY "app-role"', 'DROP ROLE "app-role"')


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--worker-role", "nobody-here"), "there is no role 'nobody-here'"),
        (("--api-role", "postgres"), "owns the schema or is privileged"),
        (("--api-role", "x", "--api-password-file", "none"), "none: No such file"),
    ],
)
def test_role_that_cannot_be_used_is_reported_in_one_line(
    cistern_migrate: Migrate, options: tuple[str, ...], reason: str
) -> None:
    code, output = cistern_migrate(*options)

    assert (code, len(output.splitlines())) == (1, 1)
    assert reason in output


def test_role_that_may_not_grant_is_told_so(empty_url: str, limited: Settings) -> None:
    migrate(empty_url)
    with pytest.raises((MigrationFailed, ConfigurationError)) as raised:
        grant_to(as_role(empty_url, ROLES[Part.API]), "x", [Part.API], password=SECRET)

    assert SECRET not in str(raised.value)
