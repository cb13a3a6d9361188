"""Invalid rows are refused by PostgreSQL itself, whatever the code does."""

import itertools
import re
from uuid import UUID, uuid4

import pytest
from sqlalchemy.exc import IntegrityError

from domain.services import Services
from tests.integration.job_builders import a_volume, sql

#: A valid row.
JOB = {
    "id": "gen_random_uuid()",
    "kind": "'volume.create'",
    "status": "'queued'",
    "version": "1",
    "params": "'{}'",
    "attempt": "0",
    "max_attempts": "8",
    "epoch": "0",
}
VOLUME = {
    "id": "gen_random_uuid()",
    "name": "'a'",
    "backend": "'memory'",
    "state": "'available'",
    "size": "1",
    "version": "1",
    "labels": "'{}'",
}
RUNNING = {"status": "'running'", "started_at": "now()", "lease_expires_at": "now()"}
FINISHED = {"status": "'failed'", "finished_at": "now()"}
BUSY = {"state": "'expanding'", "job_id": "gen_random_uuid()"}


BAD_JOBS = [
    ("jobs_status_check", {"status": "'lost'"}),
    ("jobs_finished_check", {"finished_at": "now()"}),
    ("jobs_finished_check", {"status": "'succeeded'"}),
    ("jobs_finished_check", RUNNING | {"finished_at": "now()"}),
    ("jobs_lease_check", {"lease_expires_at": "now()"}),
    ("jobs_lease_check", FINISHED | {"lease_expires_at": "now()"}),
    ("jobs_started_check", {"status": "'running'"}),
    ("jobs_counters_check", {"attempt": "-1"}),
    ("jobs_counters_check", {"epoch": "-1"}),
    ("jobs_counters_check", {"max_attempts": "0"}),
    ("jobs_schedule_check", {"schedule_id": "gen_random_uuid()"}),
    ("jobs_schedule_check", {"scheduled_for": "now()"}),
]
BAD_VOLUMES = [
    ("volumes_state_check", BUSY | {"state": "'shrinking'"}),
    ("volumes_job_check", BUSY | {"job_id": "NULL"}),
    ("volumes_job_check", BUSY | {"state": "'available'"}),
    ("volumes_job_check", BUSY | {"state": "'error'"}),
    ("volumes_size_check", {"size": "-1"}),
    ("volumes_size_check", {"size": "0"}),
    ("volumes_size_check", {"size": str(2**46 + 1)}),
    ("volumes_used_check", {"used": "-1"}),
    ("volumes_version_check", {"version": "0"}),
    ("volumes_name_check", {"name": "''"}),
    ("volumes_name_check", {"name": f"'{'n' * 129}'"}),
]


async def insert(services: Services, table: str, row: dict[str, str]) -> None:
    await sql(services, f"INSERT INTO {table} ({', '.join(row)}) VALUES ({', '.join(row.values())})")


async def violations(services: Services, table: str, row: dict[str, str]) -> list[str]:
    """Return the constraints that refuse this row; an empty list if it was inserted."""
    try:
        await insert(services, table, row)
    except IntegrityError as error:
        return re.findall(r'constraint "(\w+)"', str(error.orig))
    return []


async def test_valid_jobs_are_accepted(services: Services) -> None:
    for good in ({}, RUNNING, FINISHED, RUNNING | {"lease_expires_at": "NULL"}):
        await insert(services, "jobs", JOB | good)


async def test_invalid_jobs_are_refused(services: Services) -> None:
    refused = [(*await violations(services, "jobs", JOB | bad), bad) for _, bad in BAD_JOBS]

    assert refused == BAD_JOBS


async def test_valid_volumes_are_accepted(services: Services) -> None:
    for number, good in enumerate(({}, BUSY, {"state": "'error'"}, {"used": "0"}, {"size": str(2**46)})):
        await insert(services, "volumes", VOLUME | good | {"name": f"'{number}'"})


async def test_invalid_volumes_are_refused(services: Services) -> None:
    refused = [(*await violations(services, "volumes", VOLUME | bad), bad) for _, bad in BAD_VOLUMES]

    assert refused == BAD_VOLUMES


async def test_volume_names_are_unique(services: Services) -> None:
    await insert(services, "volumes", VOLUME)
    with pytest.raises(IntegrityError, match="volumes_project_id_name_idx"):
        await insert(services, "volumes", VOLUME)


async def test_volume_has_at_most_one_live_job(services: Services) -> None:
    for first, second in itertools.product(({}, RUNNING), ({}, RUNNING)):
        job_of_volume = JOB | {"volume_id": f"'{uuid4()}'"}
        await insert(services, "jobs", job_of_volume | first)

        assert await violations(services, "jobs", job_of_volume | second) == ["jobs_one_live_per_volume"]


async def test_volume_may_have_any_number_of_ended_jobs(services: Services) -> None:
    job_of_volume = JOB | {"volume_id": f"'{uuid4()}'"}
    for row in (FINISHED, FINISHED, {}):
        await insert(services, "jobs", job_of_volume | row)


async def test_job_has_at_most_one_retry(services: Services) -> None:
    first = str(uuid4())
    await insert(services, "jobs", JOB | FINISHED | {"id": f"'{first}'"})
    await insert(services, "jobs", JOB | {"retry_of": f"'{first}'"})
    with pytest.raises(IntegrityError, match="jobs_retry_of"):
        await insert(services, "jobs", JOB | {"retry_of": f"'{first}'"})


async def test_schedule_has_one_job_per_run(services: Services) -> None:
    run = {"schedule_id": f"'{UUID(int=1)}'", "scheduled_for": "'2026-01-01T00:00:00Z'"}
    await insert(services, "jobs", JOB | run)
    with pytest.raises(IntegrityError, match="jobs_scheduled"):
        await insert(services, "jobs", JOB | run)


async def test_deleting_a_job_keeps_its_retry_and_deletes_its_children(services: Services) -> None:
    parent = str(uuid4())
    await insert(services, "jobs", JOB | FINISHED | {"id": f"'{parent}'"})
    await insert(services, "jobs", JOB | {"retry_of": f"'{parent}'", "kind": "'retry'"})
    await insert(services, "jobs", JOB | {"parent_id": f"'{parent}'", "kind": "'child'"})
    await sql(services, "DELETE FROM jobs WHERE id = :id", id=UUID(parent))

    assert await sql(services, "SELECT kind, retry_of FROM jobs") == [("retry", None)]


async def test_volume_with_snapshots_cannot_be_deleted(services: Services) -> None:
    volume = await a_volume(services)
    snapshot = {
        "id": "gen_random_uuid()",
        "volume_id": f"'{volume.id}'",
        "name": "'s'",
        "state": "'ready'",
        "size": "1",
        "version": "1",
    }
    await insert(services, "snapshots", snapshot)
    with pytest.raises(IntegrityError, match="snapshots_volume_id_fkey"):
        await sql(services, "DELETE FROM volumes")
