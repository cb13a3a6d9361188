"""The frequent statements on volumes, as text: building them takes SQLAlchemy longer than PostgreSQL takes to run them.

A job or a chunk of items needs a few of them each; `benchmarks/race.py throughput` and `benchmarks/bulk.py` show their
cost. Each is prepared against the schema by a test. Everything else is written with SQLAlchemy in the repository.
"""

from typing import Final

from sqlalchemy import DateTime, TextualSelect, Uuid, bindparam, text

from domain.audit.model import AuditEntry
from domain.db.sql import insertion, unnested
from domain.jobs.model import Job
from domain.operations import VolumeState
from domain.volumes.model import Volume, VolumeRow


def _read_statement(locking: str = "") -> TextualSelect:
    """Build the SQL that reads volumes in the order of their ids, in which it also locks them."""
    return text(f"""
        SELECT {", ".join(VolumeRow._fields)} FROM volumes WHERE id = ANY(CAST(:ids AS uuid[])) ORDER BY id {locking}
    """).columns(*(getattr(Volume, name) for name in VolumeRow._fields))  # noqa: S608 (built from constants)


def _acceptance(volumes: str) -> TextualSelect:
    """Return SQL that writes a batch. ``volumes`` defines the table ``held``: the jobs that have their volumes now.

    The other jobs of the batch, and their entries, are not inserted.
    """
    return text(f"""
        WITH {volumes},
        recorded AS (
            {insertion(AuditEntry, rows="entries", extra_from="held,")} WHERE given.job_id = held.job_id
        )
        {insertion(Job, rows="jobs", extra_from="held,")} WHERE given.id = held.job_id
        RETURNING id, created_at
    """).columns(id=Uuid(), created_at=DateTime(timezone=True))


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


#: Read volumes.
READ: Final = _read_statement()
#: Lock and read volumes; wait for locked rows.
LOCK: Final = _read_statement("FOR UPDATE")

#: Acquire locked volumes for a job.
ACQUIRE: Final = text(f"""
    UPDATE volumes
    SET state = :state, job_id = :job_id, growing_to = acquired.growing_to, version = version + 1, updated_at = now()
    FROM {unnested("acquired", id="uuid", growing_to="bigint")}
    WHERE volumes.id = acquired.id AND volumes.id = ANY(CAST(:id AS uuid[]))
""").bindparams(bindparam("job_id", type_=Uuid()))  # noqa: S608 (built from constants)

#: Insert the volumes whose names are free in their projects, in the order of names: two transactions that add the same
#: names cannot deadlock.
#: The sort also runs before the first row is written, so that lock_timeout is set before any wait for a name that
#: another transaction has inserted and not yet committed.
ACCEPT_CREATIONS: Final = _acceptance(f"""
    held AS (
        {insertion(Volume, rows="volumes", extra_from="set_config('lock_timeout', '100ms', true),")}
        ORDER BY given.project_id, given.name
        ON CONFLICT (project_id, name) DO NOTHING
        RETURNING job_id
    )
""")
#: Acquire the volumes that are as they were read, and not locked by another transaction.
ACCEPT_EXPANSIONS: Final = _acceptance(f"""
    unchanged AS MATERIALIZED (
        SELECT volumes.id, expected.job_id, expected.growing_to
        FROM volumes JOIN {unnested("expected", id="uuid", version="bigint", job_id="uuid", growing_to="bigint")}
            ON volumes.id = expected.id AND volumes.version = expected.version
        WHERE volumes.id = ANY(CAST(:id AS uuid[]))
        ORDER BY volumes.id FOR NO KEY UPDATE OF volumes SKIP LOCKED
    ),
    held AS (
        UPDATE volumes
        SET state = '{VolumeState.EXPANDING}', job_id = unchanged.job_id, growing_to = unchanged.growing_to,
            version = version + 1, updated_at = now()
        FROM unchanged WHERE volumes.id = unchanged.id
        RETURNING volumes.job_id
    )
""")  # noqa: S608 (only constants)

#: Move volumes to an idle state, with a new size if one is given.
RELEASE: Final = _release_statement("""
    UPDATE volumes
    SET state = :state, job_id = NULL, version = version + 1,
        size = coalesce(held.size, volumes.size), growing_to = NULL, updated_at = now(),
        grown_at = CASE WHEN volumes.state = 'expanding' AND held.size > volumes.size THEN now()
            ELSE volumes.grown_at END
    FROM held WHERE
""")
#: Delete the rows of volumes.
REMOVE: Final = _release_statement("DELETE FROM volumes USING held WHERE")
