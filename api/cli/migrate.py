"""The command ``cistern migrate``."""

import asyncio

from domain.db import migrations
from domain.logs import configure_logging
from domain.settings import load_settings, require_database


def migrate(*, wait_seconds: int) -> None:
    """Migrate the database, after waiting up to ``wait_seconds`` for PostgreSQL.

    Raises:
        ConfigurationError: the settings name no database.
        DatabaseUnavailable: PostgreSQL does not respond.
    """
    settings = require_database(load_settings())
    configure_logging(settings)
    if wait_seconds:
        asyncio.run(migrations.wait_for_postgresql(settings.database_url, wait_seconds))
    migrations.migrate(settings.database_url)
