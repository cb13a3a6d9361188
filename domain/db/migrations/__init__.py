"""The history of the schema, told by Alembic."""

import asyncio
import logging
import time
from typing import Final

from alembic import command
from alembic.config import Config
from sqlalchemy.exc import DBAPIError

from domain.db.database import Database, is_transient
from domain.errors import CisternError, DatabaseUnavailable, MigrationFailed

#: Held by whoever migrates. Any number that nobody else uses on this database.
MIGRATION_LOCK: Final = 0x0C157E59
_LOCK_NOT_AVAILABLE: Final = "55P03"
_KNOCK_SECONDS: Final = 0.5


def migrate(url: str) -> None:
    """Bring the schema at ``url`` (postgresql+asyncpg://...) up to date. Safe to run twice; two at once take turns.

    Raises:
        DatabaseUnavailable: PostgreSQL does not answer.
        MigrationFailed: a revision could not be applied; those before it stay.
    """
    logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        command.upgrade(alembic_config(url), "head")
    except OSError as error:
        raise DatabaseUnavailable from error
    except DBAPIError as error:
        raise _explained(error) from error


async def wait_for_postgresql(url: str, seconds: float) -> None:
    """Wait until PostgreSQL answers, be it with a refusal: that is for whoever asks next to explain.

    Raises:
        DatabaseUnavailable: it has not answered in that time.
    """
    ends = time.monotonic() + seconds
    database = Database(url, pool_size=1)
    try:
        while not await _answers(database):
            if time.monotonic() >= ends:
                raise DatabaseUnavailable
            await asyncio.sleep(_KNOCK_SECONDS)
    finally:
        await database.close()


async def _answers(database: Database) -> bool:
    try:
        await database.ping()
    except DatabaseUnavailable:
        return False
    except DBAPIError:
        return True
    return True


def _explained(error: DBAPIError) -> CisternError:
    if getattr(error.orig, "sqlstate", None) == _LOCK_NOT_AVAILABLE:
        return MigrationFailed(
            "a table was locked for too long, so the schema is as it was:"
            " run `cistern migrate` again when no long transaction is open"
        )
    if is_transient(error):
        return DatabaseUnavailable()
    reason = " ".join(str(getattr(error.orig, "__cause__", None) or error.orig).split())
    return MigrationFailed(f"the schema is as it was: {reason}; mend that, then run `cistern migrate` again")


def alembic_config(url: str) -> Config:
    """Tell Alembic where the scripts are and which database they are for."""
    config = Config()
    config.set_main_option("script_location", "domain.db:migrations")
    config.attributes["url"] = url
    return config
