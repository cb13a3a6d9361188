"""Entity tags: ``If-None-Match``, so that nothing is sent twice, and ``If-Match``, so that nothing is overwritten."""

from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Annotated

from fastapi import Depends, Header, Response

from api.schemas.base import TextHeader
from domain.errors import PreconditionFailed
from domain.jobs.model import Job
from domain.schedules.model import Run, Schedule
from domain.snapshots.model import Snapshot
from domain.volumes.model import Volume


def job_tag(job: Job) -> str:
    """Return the entity tag of a job's present version."""
    return f'"{job.id}-{job.version}"'


def row_tag(row: Volume | Snapshot) -> str:
    """Return the entity tag of a row; it includes `updated_at`, because a rename does not increment the version."""
    return f'"{row.id}-{row.version}-{row.updated_at.timestamp():.6f}"'


def matches(tags: Sequence[str], tag: str) -> bool:
    """Check ``tag`` against all `If-None-Match` headers of a request, by the weak comparison of RFC 9110."""
    return not {tag, "*"}.isdisjoint(one.strip().removeprefix("W/") for one in ",".join(tags).split(","))


def schedule_tag(schedule: Schedule, runs: Sequence[Run]) -> str:
    """Return the entity tag of a schedule with its last runs."""
    state = [schedule.updated_at, schedule.next_run_at, *((run.id, run.job_status) for run in runs)]
    return f'"{schedule.id}-{blake2b(repr(state).encode(), digest_size=8).hexdigest()}"'


async def _if_match(
    if_match: Annotated[
        TextHeader[list[str]],
        Header(description="`ETag` of the version to be changed; if it has changed since, the answer is 412."),
    ] = None,
) -> Callable[[str], None]:
    def check(tag: str) -> None:
        """Compare with the tag of the locked row, by the strong comparison of RFC 9110.

        Raises:
            PreconditionFailed: the client has read another version.
        """
        wanted = ",".join(if_match or ["*"]).split(",")
        if {tag, "*"}.isdisjoint(one.strip() for one in wanted):
            raise PreconditionFailed

    return check


#: Checks the `If-Match` headers of a request that changes something.
IfMatchDep = Annotated[Callable[[str], None], Depends(_if_match)]


async def _not_modified(
    response: Response,
    if_none_match: Annotated[TextHeader[list[str]], Header(description="`ETag` of an earlier response.")] = None,
) -> Callable[[str], Response | None]:
    def not_modified(tag: str) -> Response | None:
        """Set the `ETag` header; return a 304 response if the client already has ``tag``."""
        response.headers["ETag"] = tag
        known = if_none_match is not None and matches(if_none_match, tag)
        return Response(status_code=304, headers=dict(response.headers)) if known else None

    return not_modified


#: Compares the `If-None-Match` headers of a request with the tag of what it reads.
NotModifiedDep = Annotated[Callable[[str], Response | None], Depends(_not_modified)]
