"""Roles with the least privileges: the API and the workers read and write rows, and never change the schema."""

import asyncio
from collections.abc import Sequence
from typing import Final

from sqlalchemy import Connection, pool, text
from sqlalchemy.exc import DBAPIError

from domain.db.connections import ConnectionRefused, create_engine, is_transient, reason_of
from domain.errors import CisternError, ConfigurationError, DatabaseUnavailable, MigrationFailed

#: PostgreSQL writes the statements itself, so that every name and password is quoted as it must be.
_STATEMENTS: Final = text("""
    SELECT format(template, CAST(:role AS text), current_schema(), current_database()) FROM unnest(CAST(ARRAY[
        'GRANT CONNECT ON DATABASE %3$I TO %1$I',
        'GRANT USAGE ON SCHEMA %2$I TO %1$I',
        'GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA %2$I TO %1$I',
        'REVOKE INSERT, UPDATE, DELETE ON %2$I.alembic_version FROM %1$I',
        'REVOKE UPDATE ON %2$I.audit_entries FROM %1$I',
        'GRANT USAGE ON ALL SEQUENCES IN SCHEMA %2$I TO %1$I',
        'ALTER DEFAULT PRIVILEGES IN SCHEMA %2$I GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO %1$I',
        'ALTER DEFAULT PRIVILEGES IN SCHEMA %2$I GRANT USAGE ON SEQUENCES TO %1$I'
    ] AS text[])) AS template
""")
_ROLE: Final = text("""
    SELECT rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls
        OR rolname = current_user AS powerful FROM pg_roles WHERE rolname = :role
""")
_WITH_LOGIN: Final = text("SELECT format('CREATE ROLE %I LOGIN', CAST(:role AS text))")
_PASSWORD: Final = text("SELECT format('ALTER ROLE %I PASSWORD %L', CAST(:role AS text), CAST(:password AS text))")


def grant_to(url: str, roles: Sequence[str], *, password: str | None = None) -> None:
    """Let roles do what the API and the workers need on the migrated schema of ``url``, and on later tables of it.

    With a password a role that does not exist is created, and the password of one that exists is set.

    Raises:
        ConfigurationError: a role does not exist, or can do more than that.
        DatabaseUnavailable: PostgreSQL does not answer.
        MigrationFailed: the role of ``url`` may not grant.
    """
    try:
        asyncio.run(_grant(url, roles, password))
    except ConnectionRefused as error:
        raise MigrationFailed(f"PostgreSQL refused the connection: {error}") from error
    except (OSError, DBAPIError) as error:
        raise _to_cistern_error(error) from None  # the cause quotes the statement, and so the password


def _to_cistern_error(error: OSError | DBAPIError) -> CisternError:
    if is_transient(error):
        return DatabaseUnavailable(reason_of(error))
    return MigrationFailed(f"the privileges are unchanged: {' '.join(reason_of(error).split())}")


async def _grant(url: str, roles: Sequence[str], password: str | None) -> None:
    engine = create_engine(url, poolclass=pool.NullPool)
    try:
        async with engine.begin() as connection:
            for role in roles:
                await connection.run_sync(_grant_one, role, password)
    finally:
        await engine.dispose()


def _grant_one(connection: Connection, role: str, password: str | None) -> None:
    powerful = connection.scalar(_ROLE, {"role": role})
    if powerful is None and password is None:
        raise ConfigurationError(f"there is no role {role!r}: create it, or name a file with its password")
    if powerful:
        raise ConfigurationError(f"the role {role!r} owns the schema or is privileged: name another one")
    if powerful is None:
        connection.exec_driver_sql(connection.scalar(_WITH_LOGIN, {"role": role}))
    if password is not None:
        connection.exec_driver_sql(connection.scalar(_PASSWORD, {"role": role, "password": password}))
    for statement in connection.scalars(_STATEMENTS, {"role": role}).all():
        connection.exec_driver_sql(statement)
