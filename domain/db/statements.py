"""The statements of `Database` itself, as text: they need no mapped table."""

from typing import Final

from sqlalchemy import Uuid, text

#: Read whether the session takes writes, and whether a commit of this role has waited for a standby for 2 s.
PING: Final = text("""
    SELECT current_setting('transaction_read_only') = 'on' AS is_read_only,
        EXISTS (
            SELECT 1 FROM pg_stat_activity
            WHERE usename = current_user AND wait_event = 'SyncRep' AND query_start < now() - interval '2 s'
        ) AS waits_for_standby
""")
#: Read whether the database was ever migrated, and to which revision.
IS_MIGRATED: Final = text("SELECT to_regclass('alembic_version') IS NOT NULL")
REVISION: Final = text("SELECT version_num FROM alembic_version")
#: Read the id of this installation.
INSTALLATION: Final = text("SELECT id FROM installation").columns(id=Uuid())
