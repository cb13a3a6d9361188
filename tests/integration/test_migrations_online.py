"""Each migration is safe while the version before it still runs, or says that it is not; none makes others wait."""

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
from alembic.script import ScriptDirectory
from sqlalchemy import Row, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from domain.db.database import _known_revisions
from domain.db.migrations import MIGRATION_LOCK, alembic_config, migrate
from domain.errors import MigrationFailed
from tests.support.databases import COLUMNS, run, tables

HOUSE = Path(__file__).parents[2]
REVISIONS = _known_revisions()
#: Tables that others refer to come first.
TABLES = (
    *("jobs", "volumes", "snapshots", "workers", "idempotency_keys", "job_items", "counters"),
    *("schedules", "schedule_runs"),
)

#: What a row may hold, by its column; ``%s`` is a different id for each row. A new column needs a word here.
VALUES: Mapping[str, Mapping[str, str]] = {
    "jobs": {
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
        "result": "NULL",
        "error": "'{}'",
        "schedule_id": "'%s'",
        "scheduled_for": "now()",
        "created_at": "now()",
        "started_at": "now()",
        "finished_at": "NULL",
        "pruned_at": "NULL",
    },
    "volumes": {
        "id": "'%s'",
        "name": "'%s'",
        "backend": "'b'",
        "state": "'expanding'",
        "size": "1024",
        "version": "1",
        "job_id": "'%s'",
        "labels": "'{}'",
        "autogrow": "NULL",
        "used": "0",
        "used_at": "now()",
        "created_at": "now()",
        "updated_at": "now()",
    },
    "snapshots": {
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
    },
    "workers": {
        "id": "'%s'",
        "host": "'h'",
        "pid": "1",
        "started_at": "now()",
        "heartbeat_at": "now()",
        "uninterrupted_since": "now()",
        "max_renewal_delay": "10",
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
    "schedules": {
        "id": "'%s'",
        "name": "'%s'",
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
}

Schema = Mapping[str, list[str]]


def upgrade(url: str, revision: str) -> None:
    command.upgrade(alembic_config(url), revision)


def schema_of(url: str) -> Schema:
    """Each table and its columns, as code of this revision knows them."""
    known: defaultdict[str, list[str]] = defaultdict(list)
    for row in run(url, COLUMNS):
        known[row._mapping["table_name"]].append(row._mapping["column_name"])
    return known


def insert(schema: Schema, number: int) -> Iterator[str]:
    """Insert a row into each table, naming the columns that are known and no others."""
    for table in (table for table in TABLES if table in schema):
        values = [VALUES[table][column].replace("%s", str(UUID(int=number))) for column in schema[table]]
        yield f"INSERT INTO {table} ({', '.join(schema[table])}) VALUES ({', '.join(values)})"


def use(schema: Schema) -> Iterator[str]:
    """Read, update and delete every row, naming the columns that are known."""
    for table, columns in schema.items():
        yield f"SELECT {', '.join(columns)} FROM {table}"
        yield f"UPDATE {table} SET {', '.join(f'{column} = {column}' for column in columns)}"
    yield from (f"DELETE FROM {table}" for table in reversed(TABLES) if table in schema)


def work_as_before(url: str, schema: Schema) -> None:
    """Do what code of the revision before does, to rows from before and from after the migration."""
    run(url, *insert(schema, 2), *use(schema))


@pytest.mark.parametrize(("before", "after"), list(pairwise(REVISIONS)))
def test_code_of_the_revision_before_goes_on_working(empty_url: str, before: str, after: str) -> None:
    script = ScriptDirectory.from_config(alembic_config("unused")).get_revision(after)
    if not getattr(script.module, "SAFE_WHILE_RUNNING", True):
        assert f"Migration {after}" in (HOUSE / "CHANGELOG.md").read_text(), "say there that workers must be stopped"
        return
    upgrade(empty_url, before)
    schema = schema_of(empty_url)
    assert set(schema) <= set(TABLES)
    run(empty_url, *insert(schema, 1))
    upgrade(empty_url, after)

    work_as_before(empty_url, schema)


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE workers ADD COLUMN new bigint NOT NULL",
        "ALTER TABLE volumes DROP COLUMN used",
        "ALTER TABLE jobs RENAME COLUMN rings TO bells",
        "ALTER TABLE jobs ADD CHECK (created_by IS NOT NULL)",
        "ALTER TABLE jobs ALTER COLUMN created_by SET NOT NULL",
        "ALTER TABLE job_items ADD CHECK (epoch > 0)",
        "DROP TABLE idempotency_keys",
    ],
)
def test_a_change_that_code_of_the_revision_before_cannot_bear_is_found(empty_url: str, change: str) -> None:
    migrate(empty_url)
    schema = schema_of(empty_url)
    run(empty_url, change)

    with pytest.raises(DBAPIError):
        work_as_before(empty_url, schema)


@contextmanager
def an_open_transaction(url: str, statement: str) -> Iterator[None]:
    """Somebody has done this and neither committed nor rolled back."""
    engine = create_async_engine(url)
    with asyncio.Runner() as runner:
        connection = runner.run(_opened(engine.connect()))
        runner.run(connection.execute(text(statement)))
        try:
            yield
        finally:
            runner.run(connection.rollback())
            runner.run(connection.close())
            runner.run(engine.dispose())


async def _opened(connecting: Any) -> Any:
    return await connecting


def until(url: str, query: str) -> list[Row[tuple[object, ...]]]:
    """Ask until there is an answer."""
    for _ in range(400):
        if rows := run(url, query):
            return rows
    raise AssertionError(query)


def test_a_migration_that_meets_a_lock_gives_up_soon_and_changes_nothing(empty_url: str) -> None:
    """While it waits, everybody who comes after it waits too."""
    upgrade(empty_url, "0002")
    before = run(empty_url, COLUMNS)
    with (
        an_open_transaction(empty_url, "SELECT * FROM workers"),
        pytest.raises(MigrationFailed, match=r"^a table was locked for too long, .* run `cistern migrate` again"),
    ):
        migrate(empty_url)
    after = run(empty_url, COLUMNS)
    migrate(empty_url)

    assert after == before
    assert "counters" in tables(empty_url)


def test_an_index_on_a_large_table_is_built_while_others_write(empty_url: str) -> None:
    upgrade(empty_url, "0003")
    insert_job, *_ = insert(schema_of(empty_url), 1)
    write = insert_job.replace(str(UUID(int=1)), str(UUID(int=2)))
    with ThreadPoolExecutor(1) as pool:
        with an_open_transaction(empty_url, insert_job):
            migrating = pool.submit(upgrade, empty_url, "0004")
            until(empty_url, "SELECT 1 FROM pg_stat_progress_create_index WHERE phase LIKE 'waiting%'")
            run(empty_url, "SET lock_timeout = '1s'", write)
            assert not migrating.done()
        migrating.result(timeout=20)

    assert run(empty_url, "SELECT indisvalid FROM pg_index WHERE indexrelid = 'jobs_ended'::regclass") == [(True,)]


def test_an_index_that_was_left_half_built_is_built_anew(empty_url: str) -> None:
    upgrade(empty_url, "0003")
    run(empty_url, "CREATE INDEX jobs_ended ON jobs (id)")
    migrate(empty_url)

    ((definition,),) = run(empty_url, "SELECT indexdef FROM pg_indexes WHERE indexname = 'jobs_ended'")
    assert "(finished_at) WHERE (finished_at IS NOT NULL)" in str(definition)


def test_who_migrates_second_says_that_it_waits_and_then_goes_on(empty_url: str) -> None:
    code = f"from domain.db.migrations import migrate; migrate({empty_url!r})"
    with an_open_transaction(empty_url, f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})"):
        second = subprocess.Popen([sys.executable, "-uc", code], stdout=subprocess.PIPE, text=True, cwd=HOUSE)
        assert second.stdout is not None
        said = second.stdout.readline()
        assert (second.poll(), tables(empty_url)) == (None, set())
    second.communicate(timeout=30)

    assert "another migration is running" in said
    assert (second.returncode, "jobs" in tables(empty_url)) == (0, True)
