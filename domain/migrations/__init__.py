"""The history of the schema, told by Alembic."""

import logging

from alembic import command
from alembic.config import Config
from sqlalchemy.exc import DBAPIError

from domain.database import passes
from domain.errors import DatabaseUnavailable


def migrate(url: str) -> None:
    """Bring the schema at ``url`` (postgresql+asyncpg://...) up to date. Safe to run twice, or by two at once.

    Raises:
        DatabaseUnavailable: PostgreSQL does not answer.
    """
    logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        command.upgrade(alembic_config(url), "head")
    except (OSError, DBAPIError) as error:
        if passes(error):
            raise DatabaseUnavailable from error
        raise


def alembic_config(url: str) -> Config:
    """Tell Alembic where the scripts are and which database they are for."""
    config = Config()
    config.set_main_option("script_location", "domain:migrations")
    config.attributes["url"] = url
    return config
