"""The frequent statements on volumes, as text: building them takes SQLAlchemy longer than PostgreSQL takes to run them.

A job or a chunk of items needs a few of them each; `benchmarks/race.py throughput` and `benchmarks/bulk.py` show their
cost. Each is prepared against the schema by a test. Everything else is written with SQLAlchemy in `repository`.
"""

from typing import Final

from sqlalchemy import TextualSelect, Uuid, text

from domain.db.sql import insertion, unnested
from domain.volumes.model import LockedVolume, Volume

_LOCKED_COLUMNS: Final = ", ".join(LockedVolume._fields)


def _release_statement(change: str) -> TextualSelect:
    """Build the SQL that changes every volume still held by its job.

    Rows are locked in the order of their ids before they change: UPDATE locks rows in the order in which it finds them,
    and two statements with different orders could deadlock. The ids are also passed to WHERE, so that the planner does
    not choose a sequential scan for a few hundred of them.
    """
    releases = unnested("release", volume_id="uuid", job_id="uuid", size="bigint")
    return text(f"""
            WITH held AS MATERIALIZED (
                SELECT volumes.id, release.size
                FROM volumes JOIN {releases} ON volumes.id = release.volume_id AND volumes.job_id = release.job_id
                WHERE volumes.id = ANY(CAST(:volume_id AS uuid[]))
                ORDER BY volumes.id FOR NO KEY UPDATE OF volumes
            )
            {change} volumes.id = held.id RETURNING volumes.id
    """).columns(id=Uuid())  # noqa: S608 (built from constants)


def _lock_statement(locking: str) -> TextualSelect:
    """Build the SQL that locks and reads volumes, in the order of their ids."""
    return text(f"""
        SELECT {_LOCKED_COLUMNS} FROM volumes WHERE id = ANY(CAST(:ids AS uuid[])) ORDER BY id {locking}
    """).columns(*(getattr(Volume, name) for name in LockedVolume._fields))  # noqa: S608 (built from constants)


#: Insert volumes whose names are free, in the order of names: two transactions that add the same names cannot deadlock.
#: The sort also runs before the first row is written, so that lock_timeout is set before any wait for a name that
#: another transaction has inserted and not yet committed.
ADD_WITH_FREE_NAMES: Final = text(f"""
    {insertion(Volume, extra_from="set_config('lock_timeout', '100ms', true),")}
    ORDER BY given.name
    ON CONFLICT (name) DO NOTHING
    RETURNING id
""").columns(id=Uuid())

#: Lock and read volumes; wait for locked rows.
LOCK: Final = _lock_statement("FOR UPDATE")
#: Lock and read volumes that no other transaction has locked.
LOCK_WITHOUT_WAITING: Final = _lock_statement("FOR NO KEY UPDATE SKIP LOCKED")

#: Acquire locked volumes, each for a job.
ACQUIRE: Final = text(f"""
    UPDATE volumes
    SET state = :state, job_id = acquired.job_id, version = version + 1, updated_at = now()
    FROM {unnested("acquired", id="uuid", job_id="uuid")}
    WHERE volumes.id = acquired.id AND volumes.id = ANY(CAST(:id AS uuid[]))
""")  # noqa: S608 (built from constants)

#: Move volumes to an idle state, with a new size if one is given.
RELEASE: Final = _release_statement("""
    UPDATE volumes
    SET state = :state, job_id = NULL, version = version + 1,
        size = coalesce(held.size, volumes.size), updated_at = now()
    FROM held WHERE
""")
#: Delete the rows of volumes.
REMOVE: Final = _release_statement("DELETE FROM volumes USING held WHERE")
