"""Examines PostgreSQL: whether it answers, its version and schema, whether it takes writes, and its clock."""

import time
from collections.abc import Sequence
from typing import Final

from sqlalchemy import func, select

from domain.db.database import Database
from domain.doctor.findings import Finding, fail, ok, warn
from domain.errors import CisternError

CHECK: Final = "postgresql"
#: The first version that has all that the statements use.
_MIN_MAJOR: Final = 15
#: By how many seconds this host's clock may differ: nothing that is stored depends on it.
_MAX_SKEW: Final = 5.0


async def examine_postgresql(database: Database) -> Sequence[Finding]:
    """Return the findings; if the first is a failure, nothing else in PostgreSQL can be examined."""
    try:
        await database.require_migrated()
        async with database.transaction() as session:
            query = select(
                func.current_setting("server_version"),
                func.extract("epoch", func.clock_timestamp()),
                func.has_table_privilege("jobs", "UPDATE"),
            )
            version, now, may_write = (await session.execute(query)).one()
    except CisternError as error:
        remedy = "start it, correct CISTERN_DATABASE_URL, or run what the message says"
        return [fail(CHECK, error.message, remedy)]
    return [_version(version), await _writes(database, may_write=may_write), _clock(time.time() - float(now))]


def _version(version: str) -> Finding:
    if int(version.partition(".")[0]) < _MIN_MAJOR:
        return fail(CHECK, f"version {version}", f"upgrade it to {_MIN_MAJOR} or newer")
    return ok(CHECK, f"version {version}, migrated")


async def _writes(database: Database, *, may_write: bool) -> Finding:
    check = "postgresql writes"
    if not may_write:
        return fail(check, "the role may not change rows", "run `cistern migrate --grant-to ROLE` as the owner")
    try:
        await database.ping()
    except CisternError as error:
        return fail(check, error.message, "point CISTERN_DATABASE_URL at the primary, or bring its standby back")
    return ok(check, "accepted")


def _clock(ahead: float) -> Finding:
    if abs(ahead) <= _MAX_SKEW:
        return ok("clock", "agrees with that of PostgreSQL")
    side = "ahead of" if ahead > 0 else "behind"
    return warn("clock", f"{abs(ahead):.0f} s {side} that of PostgreSQL", "synchronize both hosts with a time server")
