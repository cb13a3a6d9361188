"""Runs the migrations over asyncpg, one process at a time, each revision in a transaction of its own."""

import asyncio
from typing import Final

import structlog
from alembic import context
from sqlalchemy import Connection, pool, text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from domain.bulk import model as bulk_model
from domain.db.base import Base
from domain.db.migrations import MIGRATION_LOCK
from domain.jobs import idempotency as acceptance
from domain.jobs import model as jobs_model
from domain.jobs import stats as signals
from domain.schedules import model as schedules_model
from domain.snapshots import model as snapshots_model
from domain.volumes import model as volumes_model

# Imported so that Base.metadata knows their tables.
TABLES = (acceptance, bulk_model, jobs_model, schedules_model, signals, snapshots_model, volumes_model)
_ASK_AGAIN_SECONDS: Final = 0.2
#: An ALTER that waits for one slow transaction makes everybody wait who comes after it; so it must not wait for long.
_LOCK_TIMEOUT: Final = "3s"

log = structlog.get_logger("cistern.migrate")


def run(connection: Connection) -> None:
    """Upgrade, one transaction for each revision: those before one that fails stay."""
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        compare_server_default=True,
        transaction_per_migration=True,
        on_version_apply=lambda **_: be_brief(connection),
    )
    with context.begin_transaction():
        context.run_migrations()


def be_brief(connection: Connection) -> None:
    """Wait for no lock for long."""
    connection.execute(text(f"SET lock_timeout = '{_LOCK_TIMEOUT}'"))


async def take_turns(connection: AsyncConnection) -> None:
    """Wait for whoever else migrates. Not inside PostgreSQL: an index that is built online would wait for us."""
    waited = False
    while not await connection.scalar(text("SELECT pg_try_advisory_lock(:lock)"), {"lock": MIGRATION_LOCK}):
        await connection.rollback()
        if not waited:
            log.warning("another migration is running; waiting for its end")
        waited = True
        await asyncio.sleep(_ASK_AGAIN_SECONDS)
    await connection.run_sync(be_brief)
    await connection.commit()


async def connect_and_run() -> None:
    """Open the one connection that a migration needs."""
    engine = create_async_engine(context.config.attributes["url"], poolclass=pool.NullPool)
    try:
        async with engine.connect() as connection:
            await take_turns(connection)
            await connection.run_sync(run)
            await connection.commit()
    finally:
        await engine.dispose()


asyncio.run(connect_and_run())
