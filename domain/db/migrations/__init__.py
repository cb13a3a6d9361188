"""Schema migrations, run by Alembic."""

import asyncio
import logging
import time
from typing import Final

from alembic import command
from alembic.config import Config
from sqlalchemy.exc import DBAPIError

from domain.db.connections import LOCK_NOT_AVAILABLE, ConnectionRefused, is_transient, reason_of, sqlstate
from domain.db.database import Database
from domain.errors import CisternError, DatabaseUnavailable, MigrationFailed

#: Key of the advisory lock held during a migration; arbitrary, but used for nothing else in this database.
MIGRATION_LOCK: Final = 0x0C157E59
_POLL_SECONDS: Final = 0.5


def migrate(url: str) -> None:
    """Upgrade the schema at ``url`` (postgresql+asyncpg://...) to the newest revision.

    Idempotent; concurrent migrations run one after the other.

    Raises:
        DatabaseUnavailable: PostgreSQL does not answer.
        MigrationFailed: a revision could not be applied; the revisions before it stay applied.
    """
    upgrade_to_head(alembic_config(url))


def upgrade_to_head(config: Config) -> None:
    """Apply all revisions that ``config`` knows. A test adds its own to those of `alembic_config`.

    Raises:
        DatabaseUnavailable, MigrationFailed: as `migrate`.
    """
    logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        command.upgrade(config, "head")
    except (OSError, DBAPIError) as error:
        raise _to_cistern_error(error) from error


async def wait_for_postgresql(url: str, seconds: float) -> None:
    """Wait until PostgreSQL answers. An error response counts as an answer: the migration that follows reports it.

    Raises:
        DatabaseUnavailable: it did not answer within ``seconds``.
    """
    deadline = time.monotonic() + seconds
    database = Database(url, pool_size=1)
    try:
        while True:
            try:
                return await database.ping()
            except DatabaseUnavailable as error:
                if isinstance(error.__cause__, ConnectionRefused):
                    return None
                if time.monotonic() >= deadline:
                    raise
            await asyncio.sleep(_POLL_SECONDS)
    finally:
        await database.close()


def _to_cistern_error(error: OSError | DBAPIError) -> CisternError:
    if isinstance(error, ConnectionRefused):
        return MigrationFailed(f"PostgreSQL refused the connection: {error}")
    if sqlstate(error) == LOCK_NOT_AVAILABLE:
        return MigrationFailed(
            "a table was locked for too long, the schema is unchanged:"
            " run `cistern migrate` again when no long transaction is open"
        )
    if is_transient(error):
        return DatabaseUnavailable(reason_of(error))
    reason = " ".join(reason_of(error).split())
    return MigrationFailed(f"the schema is unchanged: {reason}; fix that, then run `cistern migrate` again")


def alembic_config(url: str) -> Config:
    """Return Alembic's configuration: the location of the scripts, and the URL of the database."""
    config = Config()
    config.set_main_option("script_location", "domain.db:migrations")
    config.attributes["url"] = url
    return config
