"""Runs the migrations over asyncpg, one process at a time."""

import asyncio

from alembic import context
from sqlalchemy import Connection, pool, text
from sqlalchemy.ext.asyncio import create_async_engine

from domain.database import Base
from domain.expansion import model as expansion_model
from domain.jobs import acceptance
from domain.jobs import model as jobs_model
from domain.snapshots import model as snapshots_model
from domain.volumes import model as volumes_model

# Imported so that Base.metadata knows their tables.
TABLES = (acceptance, expansion_model, jobs_model, snapshots_model, volumes_model)
# Any number that nobody else uses on this database; held until the transaction ends.
MIGRATION_LOCK = 0x0C157E59


def run(connection: Connection) -> None:
    """Upgrade inside one transaction, after whoever does the same at the moment."""
    context.configure(connection=connection, target_metadata=Base.metadata, compare_server_default=True)
    with context.begin_transaction():
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": MIGRATION_LOCK})
        context.run_migrations()


async def connect_and_run() -> None:
    """Open the one connection that a migration needs."""
    engine = create_async_engine(context.config.attributes["url"], poolclass=pool.NullPool)
    try:
        async with engine.connect() as connection:
            await connection.run_sync(run)
            await connection.commit()
    finally:
        await engine.dispose()


asyncio.run(connect_and_run())
