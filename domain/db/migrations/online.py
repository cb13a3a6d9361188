"""Changes of large tables that do not block the workers that write to them.

A revision that uses one must do nothing else: these statements run outside a transaction and cannot be rolled back.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import TextClause, text


def create_index_online(
    op: Any,
    name: str,
    table: str,
    columns: Sequence[str],
    *,
    where: TextClause | None = None,
    unique: bool = False,
    using: str | None = None,
) -> None:
    """Build an index without blocking writes. An invalid index left by an interrupted build is dropped first."""
    with op.get_context().autocommit_block():
        _disable_lock_timeout(op)
        op.drop_index(name, table_name=table, if_exists=True, postgresql_concurrently=True)
        options = {"postgresql_where": where, "postgresql_using": using, "postgresql_concurrently": True}
        op.create_index(name, table, list(columns), unique=unique, **options)


def drop_index_online(op: Any, name: str, table: str) -> None:
    """Drop an index without blocking writes."""
    with op.get_context().autocommit_block():
        _disable_lock_timeout(op)
        op.drop_index(name, table_name=table, if_exists=True, postgresql_concurrently=True)


def _disable_lock_timeout(op: Any) -> None:
    """Allow any wait: a concurrent build waits for every open transaction, but no other statement waits for it."""
    op.execute(text("SET lock_timeout = 0"))
