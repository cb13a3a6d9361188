"""The statements of `Database` itself, as text: they need no mapped table."""

from typing import Final

from sqlalchemy import text

#: Check that PostgreSQL answers.
PING: Final = text("SELECT 1")
#: Read whether the database was ever migrated, and to which revision.
IS_MIGRATED: Final = text("SELECT to_regclass('alembic_version') IS NOT NULL")
REVISION: Final = text("SELECT version_num FROM alembic_version")
