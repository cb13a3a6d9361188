"""Roles with the least privileges: the API and the workers read and write rows, and never change the schema.

Neither can change what the audit log says. The API cannot delete from it either, nor delete jobs, nor pretend to be a
worker, nor read the secrets of webhooks; workers cannot read the digests of keys, and cannot change keys, projects,
limits or webhooks.
"""

import asyncio
from collections.abc import Collection, Mapping
from enum import StrEnum
from typing import Final

from sqlalchemy import Connection, pool, text
from sqlalchemy.exc import DBAPIError

from domain.db.connections import ConnectionRefused, create_engine, is_transient, reason_of
from domain.errors import CisternError, ConfigurationError, DatabaseUnavailable, MigrationFailed


class Part(StrEnum):
    """A part of Cistern that has a role of PostgreSQL: the API with `cistern keys`, or workers with `cistern check`."""

    API = "api"
    WORKER = "worker"


_ROWS: Final = frozenset({"INSERT", "UPDATE", "DELETE"})
#: What a part may not do with a table; all else it may.
_WITHHELD: Final[Mapping[Part, Mapping[str, Collection[str]]]] = {
    Part.API: {
        **dict.fromkeys(("alembic_version", "installation", "backend_servers", "workers", "counters"), _ROWS),
        "volume_samples": _ROWS,
        "mounts": _ROWS,
        "backends": {"DELETE"},
        "job_items": {"INSERT", "UPDATE"},  # the plan of a job that is cancelled before it has begun is deleted
        "jobs": {"DELETE"},
        "audit_entries": {"UPDATE", "DELETE"},
        "webhooks": {"SELECT"},
    },
    Part.WORKER: {
        **dict.fromkeys(("alembic_version", "projects"), _ROWS),
        **dict.fromkeys(("api_keys", "sessions"), _ROWS | {"SELECT"}),
        "audit_entries": {"UPDATE"},
        "webhooks": _ROWS,
    },
}
#: What workers need of the tables that are withheld: whether the owner of a schedule has a valid key, and to lock a
#: project, which takes the right to change some column.
_FOR_WORKERS: Final = (
    "GRANT SELECT (name, role, project_id, revoked_at, expires_at) ON %2$I.api_keys TO %1$I",
    "GRANT UPDATE (created_at) ON %2$I.projects TO %1$I",
)
#: What the API needs of webhooks: everything but the secrets that deliveries are signed with.
_FOR_API: Final = (
    "GRANT SELECT (id, project_id, url, events, enabled, created_by, created_at, limits_told) ON %2$I.webhooks TO %1$I",
)
_FOR_ALL: Final = (
    "GRANT CONNECT ON DATABASE %3$I TO %1$I",
    "GRANT USAGE ON SCHEMA %2$I TO %1$I",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA %2$I TO %1$I",
    "GRANT USAGE ON ALL SEQUENCES IN SCHEMA %2$I TO %1$I",
    "ALTER DEFAULT PRIVILEGES IN SCHEMA %2$I GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO %1$I",
    "ALTER DEFAULT PRIVILEGES IN SCHEMA %2$I GRANT USAGE ON SEQUENCES TO %1$I",
)
#: PostgreSQL writes the statements itself, so that every name and password is quoted as it must be.
_STATEMENTS: Final = text("""
    SELECT format(template, CAST(:role AS text), current_schema(), current_database())
    FROM unnest(CAST(:templates AS text[])) AS template
""")
_ROLE: Final = text("""
    SELECT rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls
        OR rolname = current_user AS powerful FROM pg_roles WHERE rolname = :role
""")
_WITH_LOGIN: Final = text("SELECT format('CREATE ROLE %I LOGIN', CAST(:role AS text))")
_PASSWORD: Final = text("SELECT format('ALTER ROLE %I PASSWORD %L', CAST(:role AS text), CAST(:password AS text))")


def grant_to(url: str, role: str, parts: Collection[Part], *, password: str | None = None) -> None:
    """Let a role do what these parts need on the migrated schema of ``url``, and all with rows of later tables.

    With a password a role that does not exist is created, and the password of one that exists is set.

    Raises:
        ConfigurationError: the role does not exist, or can do more than that.
        DatabaseUnavailable: PostgreSQL does not answer.
        MigrationFailed: the role of ``url`` may not grant.
    """
    try:
        asyncio.run(_grant(url, role, parts, password))
    except ConnectionRefused as error:
        raise MigrationFailed(f"PostgreSQL refused the connection: {error}") from error
    except (OSError, DBAPIError) as error:
        raise _to_cistern_error(error) from None  # the cause quotes the statement, and so the password


def _to_cistern_error(error: OSError | DBAPIError) -> CisternError:
    if is_transient(error):
        return DatabaseUnavailable(reason_of(error))
    return MigrationFailed(f"the privileges are unchanged: {' '.join(reason_of(error).split())}")


async def _grant(url: str, role: str, parts: Collection[Part], password: str | None) -> None:
    engine = create_engine(url, poolclass=pool.NullPool)
    try:
        async with engine.begin() as connection:
            await connection.run_sync(_ensure_role, role, password)
            await connection.run_sync(_grant_and_withhold, role, parts)
    finally:
        await engine.dispose()


def _ensure_role(connection: Connection, role: str, password: str | None) -> None:
    powerful = connection.scalar(_ROLE, {"role": role})
    if powerful is None and password is None:
        raise ConfigurationError(f"there is no role {role!r}: create it, or name a file with its password")
    if powerful:
        raise ConfigurationError(f"the role {role!r} owns the schema or is privileged: name another one")
    if powerful is None:
        connection.exec_driver_sql(connection.scalar(_WITH_LOGIN, {"role": role}))
    if password is not None:
        connection.exec_driver_sql(connection.scalar(_PASSWORD, {"role": role, "password": password}))


def _grant_and_withhold(connection: Connection, role: str, parts: Collection[Part]) -> None:
    """Grant all that any of the parts may do, and revoke what none of them may, also if it was granted before."""
    templates = [*_FOR_ALL]
    for table in set.intersection(*(set(_WITHHELD[part]) for part in parts)):
        withheld = frozenset.intersection(*(frozenset(_WITHHELD[part][table]) for part in parts))
        if withheld:
            templates.append(f"REVOKE {', '.join(sorted(withheld))} ON %2$I.{table} FROM %1$I")
    if Part.API in parts:
        templates += _FOR_API
    if Part.WORKER in parts:
        templates += _FOR_WORKERS
    for statement in connection.scalars(_STATEMENTS, {"role": role, "templates": templates}).all():
        connection.exec_driver_sql(statement)
