"""What a revision may do to a large table while workers write to it.

Such a revision does this and nothing else: it has no transaction that could take anything back.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import TextClause, text


def create_index_online(
    op: Any, name: str, table: str, columns: Sequence[str], *, where: TextClause, unique: bool = False
) -> None:
    """Build an index while others write. What an earlier try has left half built is dropped first."""
    with op.get_context().autocommit_block():
        _wait_for_others(op)
        op.drop_index(name, table_name=table, if_exists=True, postgresql_concurrently=True)
        op.create_index(name, table, list(columns), unique=unique, postgresql_where=where, postgresql_concurrently=True)


def drop_index_online(op: Any, name: str, table: str) -> None:
    """Drop an index while others write."""
    with op.get_context().autocommit_block():
        _wait_for_others(op)
        op.drop_index(name, table_name=table, if_exists=True, postgresql_concurrently=True)


def _wait_for_others(op: Any) -> None:
    """Be patient: it waits for every transaction that is open, but nobody has to wait for it."""
    op.execute(text("SET lock_timeout = 0"))
