"""Every statement that is written as text is valid on the migrated schema, and inserts every column."""

import ast
import asyncio
import importlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import asyncpg
import pytest
from sqlalchemy import BigInteger, ClauseElement, DateTime, Text, TextClause, TextualSelect, Uuid
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.dialects.postgresql import asyncpg as dialect
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from domain.audit.model import NOBODY
from domain.db.base import DEFAULT_PROJECT, Entity
from domain.db.sql import as_rows, given_columns
from domain.jobs.model import Job, JobMessage
from domain.jobs.states import JobStatus
from domain.jobs.store import statements
from domain.jobs.store.leases import LeaseRepository
from domain.operations import VolumeState
from domain.services import Services
from domain.volumes.batches import CreateRequest, Expansion, accept_creations, accept_expansions, read_volumes
from domain.volumes.model import Growth, Volume, VolumeRow
from tests.integration.job_builders import a_queued_expand, sql
from tests.support.bulk import add_volumes

ROOT = Path(__file__).parents[2]
Row = TypeVar("Row", bound=Entity)
Add = Callable[[AsyncSession, Any], Awaitable[None]]
#: The module of each package that has its statements.
MODULES = (
    "domain.audit.repository",
    "domain.bulk.ledger",
    "domain.db.statements",
    "domain.jobs.store.statements",
    "domain.projects.quota",
    "domain.volumes.statements",
)


def all_statements() -> Iterator[tuple[str, ClauseElement]]:
    for module in MODULES:
        for name, value in vars(importlib.import_module(module)).items():
            members = value.items() if isinstance(value, dict) else [("", value)]
            for key, one in members:
                if isinstance(one, TextClause | TextualSelect):
                    yield f"{module}.{name}{key and f'[{key}]'}", one


STATEMENTS = dict(all_statements())


@pytest.mark.parametrize("name", STATEMENTS)
async def test_statement_can_be_prepared(name: str, database_url: str) -> None:
    sql = str(STATEMENTS[name].compile(dialect=dialect.dialect()))  # type: ignore[no-untyped-call]
    connection = await asyncpg.connect(database_url.replace("+asyncpg", ""))
    try:
        await connection.prepare(sql)
    finally:
        await connection.close()


async def plans(connection: AsyncConnection) -> Counter[tuple[str, str]]:
    """Count the plans made for one execution (custom) and the executions of a kept one (generic), by statement."""
    query = "SELECT name, custom_plans, generic_plans FROM pg_prepared_statements WHERE statement !~ 'pg_prepared'"
    rows = await connection.execute(TextClause(query))
    return Counter({(one.name, kind): getattr(one, f"{kind}_plans") for one in rows for kind in ("custom", "generic")})


async def test_frequent_statement_about_a_single_row_is_not_planned_anew_each_time(services: Services) -> None:
    volumes = await add_volumes(services, 1000, backend="memory")
    await asyncio.gather(*(services.volumes.request_expand(volume_id, Growth(by=1)) for volume_id in volumes))
    await sql(services, "ANALYZE volumes, jobs")
    async with services.database.autocommit() as connection:
        before, leases = await plans(connection), LeaseRepository(connection)
        for _ in range(10):
            await leases.claim(
                [JobMessage(uuid4(), 0)], worker_id=uuid4(), kinds=["volume.expand"], backends=["memory"], lease=15
            )
            await read_volumes(connection, [uuid4()])
            row = VolumeRow(uuid4(), DEFAULT_PROJECT, "v", "memory", VolumeState.AVAILABLE, 1, 1, None, None, None)
            job = filled(Job, params={"to_size": 8}, parent_id=None, retry_of=None)
            await accept_expansions(connection, [Expansion(job, row, NOBODY)])
        used = await plans(connection) - before

    by_statement = {name: (used[name, "custom"], used[name, "generic"]) for name, _ in used}
    assert [sum(counts) for counts in by_statement.values()] == [10, 10, 10]
    assert [custom for custom, _ in by_statement.values() if custom > 5] == [], "only the first five are planned anew"


def test_text_is_only_written_in_one_module_of_each_package() -> None:
    """Index conditions and defaults of mapped tables are text too; the migration tests compare them."""
    allowed = {Path(*module.split(".")).with_suffix(".py") for module in MODULES}
    files = [file for package in ("api", "worker", "domain") for file in (ROOT / package).rglob("*.py")]
    calls = {
        file.relative_to(ROOT)
        for file in files
        if file.name not in ("model.py", "base.py") and "migrations" not in file.parts
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "text"
    }

    assert len(STATEMENTS) > 15
    assert calls == allowed


#: A value for each type of column, and for the columns that a constraint limits.
VALUES: dict[type[Any], Any] = {
    Text: "some text",
    BigInteger: 7,
    JSONB: {"some": "json"},
    DateTime: datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
    Uuid: uuid4(),
}
LIMITED: dict[type[Entity], dict[str, Any]] = {
    Volume: {"state": VolumeState.EXPANDING},
    Job: {"status": JobStatus.RUNNING, "finished_at": None},
}


def filled(entity: type[Row], **values: Any) -> Row:
    """Build a row with a value in every column that PostgreSQL does not fill in; new columns are included."""
    by_type = {column.name: VALUES.get(type(column.type)) for column in given_columns(entity)}
    return entity(**by_type | LIMITED[entity] | {"id": uuid4(), **values})


async def added(services: Services, row: Entity, add: Add) -> dict[str, Any]:
    """Insert a row in some way; return what was stored, and delete it again."""
    entity = type(row)
    async with services.database.transaction() as session:
        await add(session, row)
    async with services.database.transaction() as session:
        stored = await session.get_one(entity, row.id)
        await session.delete(stored)
        return {column.name: getattr(stored, column.name) for column in entity.__table__.columns}


async def add_alone(session: AsyncSession, row: Entity) -> None:
    session.add(row)
    await session.flush()


async def create_in_batch(session: AsyncSession, row: Volume | Job) -> None:
    """Accept the creation of a volume; the row is either of the two that are written."""
    volume = row if isinstance(row, Volume) else filled(Volume, job_id=row.id)
    job = row if isinstance(row, Job) else filled(Job, id=volume.job_id, parent_id=None, retry_of=None)
    assert await accept_creations(session, [CreateRequest(volume, job, NOBODY)]) == [job]


async def expand_in_batch(session: AsyncSession, job: Job) -> None:
    volume = filled(Volume)
    await add_alone(session, volume)
    read = await read_volumes(session, [volume.id])
    assert await accept_expansions(session, [Expansion(job, read[volume.id], NOBODY)]) == [job]


async def add_undispatched(session: AsyncSession, job: Entity) -> None:
    await session.execute(statements.ADD_UNDISPATCHED, {"rows": as_rows([job])})


@pytest.mark.parametrize(
    ("entity", "add"),
    [(Volume, create_in_batch), (Job, create_in_batch), (Job, expand_in_batch), (Job, add_undispatched)],
)
async def test_batch_writes_every_column_that_a_single_insert_writes(
    entity: type[Entity], add: Add, services: Services
) -> None:
    other = (await a_queued_expand(services)).id
    values: dict[str, Any] = {"id": uuid4(), "job_id": uuid4()}
    if entity is Job:
        values = {"id": uuid4(), "parent_id": other, "retry_of": other, "params": {"to_size": 8}}
    single = await added(services, filled(entity, **values), add_alone)
    batched = await added(services, filled(entity, **values), add)

    given = [column.name for column in given_columns(entity)]
    assert [name for name in given if single[name] is None] == [
        name for name, one in LIMITED[entity].items() if not one
    ]
    assert {name: batched[name] for name in given} == {name: single[name] for name in given}
