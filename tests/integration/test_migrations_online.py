"""Each migration is safe while the previous version runs, or documented as unsafe; none blocks others for long.

The revisions in ``revisions/`` follow those of the product, so that each kind of change is tested whatever the
product's own revisions are.
"""

import asyncio
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Row, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from domain.db.base import DEFAULT_PROJECT
from domain.db.database import known_revisions
from domain.db.migrations import MIGRATION_LOCK, alembic_config, migrate, upgrade_to_head
from domain.errors import MigrationFailed
from tests.support.databases import COLUMNS, run, tables

ROOT = Path(__file__).parents[2]


def config_of(url: str) -> Config:
    """Return Alembic's configuration with the revisions of the product, followed by those of this test."""
    config = alembic_config(url)
    config.set_main_option("version_locations", "domain.db:migrations/versions tests.integration:revisions")
    config.set_main_option("path_separator", "space")
    return config


#: The last revision of the product, and all revisions in order.
PRODUCT_HEAD = known_revisions()[-1]
REVISIONS = [script.revision for script in ScriptDirectory.from_config(config_of("unused")).walk_revisions()][::-1]
#: Referenced tables come before the tables that refer to them.
TABLES = (
    *("jobs", "volumes", "snapshots", "workers", "idempotency_keys", "job_items", "counters"),
    *("schedules", "schedule_runs", "installation", "backends", "backend_servers", "test_notes"),
    *("projects", "api_keys", "audit_entries", "sessions", "webhooks", "volume_samples"),
    *("attachments", "mounts"),
)

#: The project that every database has.
DEFAULT = f"'{DEFAULT_PROJECT}'"

#: A valid value for each column; ``%s`` is a different id for each row. A new column needs an entry here.
VALUES: Mapping[str, Mapping[str, str]] = {
    "jobs": {
        "project_id": DEFAULT,
        "id": "'%s'",
        "kind": "'bulk.expand'",
        "status": "'running'",
        "version": "1",
        "params": "'{}'",
        "volume_id": "'%s'",
        "snapshot_id": "'%s'",
        "backend": "'b'",
        "parent_id": "NULL",
        "retry_of": "NULL",
        "created_by": "NULL",
        "attempt": "1",
        "max_attempts": "8",
        "epoch": "0",
        "dispatched_at": "NULL",
        "run_at": "now()",
        "worker_id": "gen_random_uuid()",
        "lease_expires_at": "now()",
        "cancel_requested_at": "NULL",
        "total": "1",
        "succeeded": "0",
        "failed": "0",
        "skipped": "0",
        "waiting_for": "NULL",
        "result": "NULL",
        "error": "'{}'",
        "schedule_id": "'%s'",
        "scheduled_for": "now()",
        "created_at": "now()",
        "started_at": "now()",
        "finished_at": "NULL",
        "pruned_at": "NULL",
        "traceparent": "NULL",
        "volume_name": "NULL",
        "test_hidden_at": "now()",
    },
    "volumes": {
        "project_id": DEFAULT,
        "id": "'%s'",
        "name": "'%s'",
        "backend": "'b'",
        "state": "'expanding'",
        "size": "1024",
        "version": "1",
        "job_id": "'%s'",
        "growing_to": "NULL",
        "labels": "'{}'",
        "autogrow": "NULL",
        "used": "0",
        "used_at": "now()",
        "filesystem": "'ext4'",
        "filesystem_size": "1000",
        "filesystem_used": "10",
        "inodes": "100",
        "inodes_used": "1",
        "filesystem_grown_to": "1024",
        "filesystem_error": "NULL",
        "source_snapshot_id": "NULL",
        "source_volume_id": "NULL",
        "grown_at": "NULL",
        "created_at": "now()",
        "updated_at": "now()",
    },
    "snapshots": {
        "project_id": DEFAULT,
        "id": "'%s'",
        "volume_id": "'%s'",
        "name": "'s'",
        "state": "'ready'",
        "size": "1024",
        "version": "1",
        "job_id": "NULL",
        "created_at": "now()",
        "updated_at": "now()",
        "schedule_id": "'%s'",
        "labels": "'{}'",
        "consistency": "'crash'",
    },
    "attachments": {
        "project_id": DEFAULT,
        "id": "'%s'",
        "volume_id": "'%s'",
        "node": "'n'",
        "holder": "'h'",
        "mode": "'rw'",
        "path": "NULL",
        "state": "'attached'",
        "generation": "1",
        "created_at": "now()",
        "updated_at": "now()",
    },
    "mounts": {
        "volume_id": "'%s'",
        "node": "'n'",
        "generation": "1",
        "device": "'/dev/loop0'",
        "path": "NULL",
        "freeze_id": "NULL",
        "freeze_until": "NULL",
        "freeze_state": "NULL",
    },
    "workers": {
        "id": "'%s'",
        "host": "'h'",
        "pid": "1",
        "started_at": "now()",
        "heartbeat_at": "now()",
        "uninterrupted_since": "now()",
        "max_renewal_delay": "10",
        "slots": "10",
        "node": "NULL",
        "test_since": "now()",
        "test_delay": "0",
    },
    "idempotency_keys": {
        "caller": "'c'",
        "key": "'%s'",
        "route": "'r'",
        "fingerprint": "'f'",
        "status": "202",
        "body": "'{}'",
        "expires_at": "now()",
    },
    "job_items": {
        "backend": "'b'",
        "job_id": "'%s'",
        "volume_id": "'%s'",
        "status": "'claimed'",
        "lane_id": "gen_random_uuid()",
        "epoch": "0",
        "from_size": "1",
        "to_size": "2",
        "snapshot_id": "NULL",
        "used": "0",
        "code": "NULL",
        "detail": "NULL",
        "busy_since": "NULL",
        "due_at": "now()",
    },
    "counters": {"name": "'%s'", "value": "1"},
    "projects": {
        "id": "'%s'",
        "name": "'%s'",
        "max_volumes": "1",
        "max_bytes": "1",
        "max_snapshots": "1",
        "max_queued_jobs": "1",
        "created_by": "NULL",
        "created_at": "now()",
    },
    "api_keys": {
        "project_id": DEFAULT,
        "id": "'%s'",
        "public_id": "'%s'",
        "digest": "'a'",
        "name": "'n'",
        "role": "'viewer'",
        "created_by": "NULL",
        "created_at": "now()",
        "expires_at": "NULL",
        "revoked_at": "NULL",
        "last_used_at": "NULL",
    },
    "sessions": {
        "digest": "'%s'",
        "key_id": "'%s'",
        "created_at": "now()",
        "last_used_at": "now()",
    },
    "volume_samples": {
        "volume_id": "'%s'",
        "at": "now()",
        "size": "4096",
        "used": "NULL",
    },
    "webhooks": {
        "project_id": DEFAULT,
        "id": "'%s'",
        "url": "'https://hooks.example'",
        "secret": "'s'",
        "events": "'{job.failed}'",
        "enabled": "true",
        "created_by": "NULL",
        "created_at": "now()",
        "limits_told": "'{}'",
    },
    "audit_entries": {
        "project_id": DEFAULT,
        "id": "'%s'",
        "action": "'volume.create'",
        "name": "'n'",
        "key_id": "'%s'",
        "request_id": "'r'",
        "peer": "'p'",
        "job_id": "'%s'",
        "subject_id": "'%s'",
        "subject_name": "'s'",
        "details": "'{}'",
        "created_at": "now()",
    },
    "schedules": {
        "project_id": DEFAULT,
        "id": "'%s'",
        "name": "'%s'",
        "owner": "NULL",
        "cron": "'* * * * *'",
        "time_zone": "'UTC'",
        "action": "'bulk.expand'",
        "params": "'{}'",
        "enabled": "true",
        "catch_up_seconds": "0",
        "next_run_at": "now()",
        "last_job_id": "NULL",
        "created_at": "now()",
        "updated_at": "now()",
    },
    "schedule_runs": {
        "id": "'%s'",
        "schedule_id": "'%s'",
        "scheduled_for": "now()",
        "last_scheduled_for": "now()",
        "count": "1",
        "outcome": "'skipped'",
        "detail": "NULL",
        "job_id": "NULL",
        "created_at": "now()",
    },
    "installation": {"id": "'%s'"},
    "backends": {
        "name": "'%s'",
        "driver": "'file'",
        "position": "0",
        "identity": "NULL",
        "path_pattern": "NULL",
        "total": "1",
        "used": "1",
        "free": "0",
        "measured_at": "now()",
        "overcommit": "1",
        "promised": "0",
        "promised_at": "now()",
        "served_since": "now()",
        "created_at": "now()",
    },
    "backend_servers": {
        "backend": "'b'",
        "worker_id": "'%s'",
        "host": "'h'",
        "problem": "NULL",
        "since": "now()",
        "seen_at": "now()",
        "filesystems": "'{ext4}'",
    },
    "test_notes": {"id": "'%s'", "job_id": "'%s'", "note": "'%s'"},
}

Schema = Mapping[str, list[str]]


def upgrade(url: str, revision: str) -> None:
    command.upgrade(config_of(url), revision)


def schema_of(url: str) -> Schema:
    """Return each table with its columns, as the code of the current revision knows them."""
    columns: defaultdict[str, list[str]] = defaultdict(list)
    for row in run(url, COLUMNS):
        columns[row._mapping["table_name"]].append(row._mapping["column_name"])
    return columns


def insert(schema: Schema, number: int) -> Iterator[str]:
    """Insert a row into each table of the schema, naming exactly the columns of the schema."""
    for table in (table for table in TABLES if table in schema):
        values = [VALUES[table][column].replace("%s", str(UUID(int=number))) for column in schema[table]]
        yield f"INSERT INTO {table} ({', '.join(schema[table])}) VALUES ({', '.join(values)})"


def use(schema: Schema) -> Iterator[str]:
    """Read, update and delete every row, naming the columns of the schema."""
    for table, columns in schema.items():
        yield f"SELECT {', '.join(columns)} FROM {table}"
        yield f"UPDATE {table} SET {', '.join(f'{column} = {column}' for column in columns)}"
    yield from (f"DELETE FROM {table}" for table in reversed(TABLES) if table in schema)


def run_previous_code(url: str, schema: Schema) -> None:
    """Do what the code of the previous revision does, with rows from before and after the migration."""
    run(url, *insert(schema, 2), *use(schema))


@pytest.mark.parametrize(("before", "after"), list(pairwise(REVISIONS)))
def test_code_of_the_previous_revision_keeps_working(empty_url: str, before: str, after: str) -> None:
    script = ScriptDirectory.from_config(config_of("unused")).get_revision(after)
    if not getattr(script.module, "SAFE_WHILE_RUNNING", True):
        assert f"Migration {after}" in (ROOT / "CHANGELOG.md").read_text(), (
            "document there that workers must be stopped"
        )
        return
    upgrade(empty_url, before)
    schema = schema_of(empty_url)
    assert set(schema) <= set(TABLES)
    run(empty_url, *insert(schema, 1))
    upgrade(empty_url, after)

    run_previous_code(empty_url, schema)


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE workers ADD COLUMN new bigint NOT NULL",
        "ALTER TABLE volumes DROP COLUMN used",
        "ALTER TABLE jobs RENAME COLUMN epoch TO generation",
        "ALTER TABLE jobs ADD CHECK (created_by IS NOT NULL)",
        "ALTER TABLE jobs ALTER COLUMN created_by SET NOT NULL",
        "ALTER TABLE job_items ADD CHECK (epoch > 0)",
        "DROP TABLE idempotency_keys",
    ],
)
def test_incompatible_change_is_detected(empty_url: str, change: str) -> None:
    migrate(empty_url)
    schema = schema_of(empty_url)
    run(empty_url, change)

    with pytest.raises(DBAPIError):
        run_previous_code(empty_url, schema)


@contextmanager
def an_open_transaction(url: str, statement: str) -> Iterator[None]:
    """Execute a statement in another transaction, which stays open while the block runs."""
    engine = create_async_engine(url)
    with asyncio.Runner() as runner:
        connection = runner.run(_open(engine.connect()))
        runner.run(connection.execute(text(statement)))
        try:
            yield
        finally:
            runner.run(connection.rollback())
            runner.run(connection.close())
            runner.run(engine.dispose())


async def _open(connecting: Any) -> Any:
    return await connecting


def until(url: str, query: str) -> list[Row[tuple[object, ...]]]:
    """Repeat a query until it returns rows."""
    for _ in range(400):
        if rows := run(url, query):
            return rows
    raise AssertionError(query)


def test_migration_that_meets_a_lock_fails_soon_and_changes_nothing(empty_url: str) -> None:
    """While it waits for the lock, every later statement on the table waits behind it."""
    upgrade(empty_url, PRODUCT_HEAD)
    before = run(empty_url, COLUMNS)
    with (
        an_open_transaction(empty_url, "SELECT * FROM workers"),
        pytest.raises(MigrationFailed, match=r"^a table was locked for too long, .* run `cistern migrate` again"),
    ):
        upgrade_to_head(config_of(empty_url))
    after = run(empty_url, COLUMNS)
    upgrade_to_head(config_of(empty_url))

    assert after == before
    assert "test_notes" in tables(empty_url)


def test_index_is_built_while_others_write(empty_url: str) -> None:
    upgrade(empty_url, "t1")
    insert_job, *_ = insert(schema_of(empty_url), 1)
    write = insert_job.replace(str(UUID(int=1)), str(UUID(int=2)))
    with ThreadPoolExecutor(1) as pool:
        with an_open_transaction(empty_url, insert_job):
            migrating = pool.submit(upgrade, empty_url, "t2")
            until(empty_url, "SELECT 1 FROM pg_stat_progress_create_index WHERE phase LIKE 'waiting%'")
            run(empty_url, "SET lock_timeout = '1s'", write)
            assert not migrating.done()
        migrating.result(timeout=20)

    assert run(empty_url, "SELECT indisvalid FROM pg_index WHERE indexrelid = 'test_jobs_hidden'::regclass") == [
        (True,)
    ]


def test_index_of_an_interrupted_build_is_rebuilt(empty_url: str) -> None:
    upgrade(empty_url, "t1")
    run(empty_url, "CREATE INDEX test_jobs_hidden ON jobs (id)")
    upgrade_to_head(config_of(empty_url))

    ((definition,),) = run(empty_url, "SELECT indexdef FROM pg_indexes WHERE indexname = 'test_jobs_hidden'")
    assert "(test_hidden_at) WHERE (test_hidden_at IS NOT NULL)" in str(definition)


def test_online_indexes_can_be_dropped_and_rebuilt(empty_url: str) -> None:
    query = "SELECT indexname FROM pg_indexes WHERE indexname LIKE 'test_jobs_%' ORDER BY 1"
    upgrade(empty_url, "head")
    built = run(empty_url, query)
    command.downgrade(config_of(empty_url), PRODUCT_HEAD)
    dropped = run(empty_url, query)
    upgrade(empty_url, "head")

    assert [str(name) for (name,) in built] == ["test_jobs_failed", "test_jobs_hidden"]
    assert dropped == []
    assert run(empty_url, query) == built


def test_second_migration_logs_that_it_waits_and_then_continues(empty_url: str) -> None:
    code = f"from domain.db.migrations import migrate; migrate({empty_url!r})"
    with an_open_transaction(empty_url, f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})"):
        second = subprocess.Popen([sys.executable, "-uc", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert second.stdout is not None
        line = second.stdout.readline()
        assert (second.poll(), tables(empty_url)) == (None, set())
    second.communicate(timeout=30)

    assert "another migration is running" in line
    assert (second.returncode, "jobs" in tables(empty_url)) == (0, True)
