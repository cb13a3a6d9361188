"""Alembic's environment: runs the migrations over asyncpg, one process at a time, each revision in a transaction."""

import asyncio
from typing import Final

import structlog
from alembic import context
from sqlalchemy import Connection, event, pool, text
from sqlalchemy.ext.asyncio import AsyncConnection

from domain.access import model as access_model
from domain.audit import model as audit_model
from domain.bulk import model as bulk_model
from domain.db.base import Base
from domain.db.connections import create_engine, require_usable_pooler
from domain.db.migrations import MIGRATION_LOCK
from domain.jobs import acceptance, stats
from domain.jobs import model as jobs_model
from domain.jobs.webhooks import model as webhooks_model
from domain.projects import model as projects_model
from domain.schedules import model as schedules_model
from domain.snapshots import model as snapshots_model
from domain.storage import model as storage_model
from domain.volumes import model as volumes_model
from domain.volumes.attachments import model as attachments_model
from domain.volumes.history import model as history_model

#: Imported to register their tables in Base.metadata.
TABLES = (
    access_model,
    attachments_model,
    acceptance,
    audit_model,
    bulk_model,
    history_model,
    jobs_model,
    projects_model,
    schedules_model,
    snapshots_model,
    storage_model,
    stats,
    volumes_model,
    webhooks_model,
)
_POLL_SECONDS: Final = 0.2
#: Must be short: while an ALTER waits for one slow transaction, every later query of that table waits behind it.
_LOCK_TIMEOUT: Final = "3s"

log = structlog.get_logger("cistern.migrate")


def run(connection: Connection) -> None:
    """Apply the revisions, each in its own transaction: those before one that fails stay applied."""
    event.listen(connection, "begin", set_lock_timeout)
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        compare_server_default=True,
        transaction_per_migration=True,
    )
    with context.begin_transaction():
        context.run_migrations()


def set_lock_timeout(connection: Connection) -> None:
    """Limit the time that a statement of this transaction waits for a lock."""
    connection.execute(text(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'"))


async def acquire_migration_lock(connection: AsyncConnection) -> None:
    """Wait until no other migration runs; the lock is held until the end of the transaction that is open then.

    Polls instead of blocking in PostgreSQL: an index that the other migration builds online would wait for this
    transaction.
    """
    waited = False
    while not await connection.scalar(text("SELECT pg_try_advisory_xact_lock(:lock)"), {"lock": MIGRATION_LOCK}):
        await connection.rollback()
        if not waited:
            log.warning("migration.waiting", reason="another migration is running")
        waited = True
        await asyncio.sleep(_POLL_SECONDS)
    await connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))


async def connect_and_run() -> None:
    """Migrate over one connection, while another one holds the migration lock: a pooler may keep no lock of a session.

    Raises:
        ConfigurationError: a pooler in front of PostgreSQL loses prepared statements.
    """
    url = context.config.attributes["url"]
    await require_usable_pooler(url, {})
    engine = create_engine(url, poolclass=pool.NullPool)
    try:
        async with engine.connect() as guard, engine.connect() as connection:
            await acquire_migration_lock(guard)
            await connection.run_sync(run)
            await connection.commit()
    finally:
        await engine.dispose()


asyncio.run(connect_and_run())
