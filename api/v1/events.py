"""A job's progress as it happens: Server-Sent Events, from whichever API process, whichever worker does the work."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated, Final
from uuid import UUID

from fastapi import APIRouter, Depends, Header
from fastapi.sse import EventSourceResponse, ServerSentEvent

from api.dependencies import JobsDep, NoQuery, ServicesDep
from api.error_handlers import NoResponsePossible
from api.openapi import errors
from api.schemas.omittable import HEADER_TEXT
from api.schemas.responses import JobOut
from domain.errors import JobNotFound
from domain.jobs.model import Job

#: At most five events a second: more than that nobody can read, and what is left out the next one says too.
_PAUSE_SECONDS: Final = 0.2
#: No more digits than a version can have: of thousands Python makes no number.
_VERSION: Final = re.compile(r"[0-9]{1,19}")

router = APIRouter(prefix="/jobs", tags=["jobs"])


async def _last_seen(
    job_id: UUID,
    jobs: JobsDep,
    last_event_id: Annotated[
        str | None,
        Header(description="The `id` of the last event that was seen; only what is newer is sent."),
        HEADER_TEXT,
    ] = None,
) -> int | None:
    """Find out which version of the job the client has seen; one that never was is as good as none.

    Raises:
        JobNotFound: there is no such job.
        NothingFollows: what it has seen was the end.
    """
    job = await jobs.get(job_id)
    seen = int(last_event_id) if last_event_id and _VERSION.fullmatch(last_event_id) else None
    if job.ended and seen == job.version:
        raise NoResponsePossible
    return seen


@router.get(
    "/{job_id}/events",
    operation_id="follow_job",
    summary="Follow a job until it ends",
    response_class=EventSourceResponse,
    responses=errors(JobNotFound) | {204: {"description": "The end was seen before: nothing follows."}},
    dependencies=[NoQuery],
)
async def follow_job(
    job_id: UUID, services: ServicesDep, last_seen: Annotated[int | None, Depends(_last_seen)]
) -> AsyncIterator[ServerSentEvent]:
    """Send the job whenever it has changed, at most five times a second, the last time when it has `ended`.

    Each event holds the whole job but its params, so one that was missed is made good by the next.
    """
    async with aclosing(services.watcher.follow(job_id, last_seen)) as states:
        async for job in states:
            yield _event(job)
            await asyncio.sleep(_PAUSE_SECONDS)


def _event(job: Job) -> ServerSentEvent:
    # What was asked for does not change, and may be ten thousand ids.
    data = JobOut.from_row(job).model_dump_json(exclude={"params"})
    return ServerSentEvent(event="ended" if job.ended else "progress", id=str(job.version), raw_data=data)
