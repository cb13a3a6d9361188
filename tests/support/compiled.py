"""One cache of compiled SQL statements for all engines of the process.

SQLAlchemy compiles each statement once per engine. A process of Cistern has one engine for its whole life, but each
test opens new ones: compiling took a fifth of the CPU time of the integration tests. The text of a statement depends
only on the kind of database, which is the same for all of them.
"""

from typing import Any

from sqlalchemy import Engine, util
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg

_cache: "util.LRUCache[Any, Any]" = util.LRUCache(5000)


class SharingDialect(PGDialect_asyncpg):
    """The dialect of asyncpg, equal to any other that converts JSON alike: a dialect is part of the cache's keys."""

    supports_statement_cache = True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SharingDialect) and self._converters() == other._converters()

    def __hash__(self) -> int:
        return hash(self._converters())

    def _converters(self) -> tuple[object, object]:
        return self._json_serializer, self._json_deserializer

    @classmethod
    def engine_created(cls, engine: Engine) -> None:
        engine._compiled_cache = _cache


def share_compiled_statements() -> None:
    """Give the engines that this process creates from now on one cache."""
    registry.register("postgresql.asyncpg", __name__, SharingDialect.__name__)
