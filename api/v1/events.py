"""The progress of a job as Server-Sent Events; any API process can follow a job of any worker."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated, Final
from uuid import UUID

from fastapi import APIRouter, Depends, Header
from fastapi.sse import EventSourceResponse, ServerSentEvent

from api.dependencies import JobsDep, NoQuery, ServicesDep
from api.error_handlers import StreamEnded
from api.openapi import errors
from api.schemas.base import HEADER_TEXT
from api.schemas.jobs import JobOut
from domain.errors import JobNotFound
from domain.jobs.model import Job

#: Pause between two events. Changes in between are not lost: every event has the whole job.
_PAUSE_SECONDS: Final = 0.2
#: Limited to the digits of a version: Python raises ValueError for integers with thousands of digits.
_VERSION: Final = re.compile(r"[0-9]{1,19}")

router = APIRouter(prefix="/jobs", tags=["jobs"])


async def _last_version(
    job_id: UUID,
    jobs: JobsDep,
    last_event_id: Annotated[
        str | None,
        Header(description="The `id` of the last event received; only newer ones are sent."),
        HEADER_TEXT,
    ] = None,
) -> int | None:
    """Return the version of the job that the client has received; None if `Last-Event-ID` is absent or malformed.

    Raises:
        JobNotFound: there is no such job.
        StreamEnded: the client has received the last version.
    """
    job = await jobs.get(job_id)
    version = int(last_event_id) if last_event_id and _VERSION.fullmatch(last_event_id) else None
    if job.ended and version == job.version:
        raise StreamEnded
    return version


@router.get(
    "/{job_id}/events",
    operation_id="follow_job",
    summary="Follow a job until it ends",
    response_class=EventSourceResponse,
    responses=errors(JobNotFound) | {204: {"description": "The last event was received before."}},
    dependencies=[NoQuery],
)
async def follow_job(
    job_id: UUID, services: ServicesDep, last_version: Annotated[int | None, Depends(_last_version)]
) -> AsyncIterator[ServerSentEvent]:
    """Send an event whenever the job changes, at most five per second; the last event has the type `ended`.

    Each event has the whole job without its params, so a client that misses one needs only the next.
    """
    async with aclosing(services.watcher.follow(job_id, last_version)) as states:
        async for job in states:
            yield _event(job)
            await asyncio.sleep(_PAUSE_SECONDS)


def _event(job: Job) -> ServerSentEvent:
    # The params never change, and may have ten thousand ids.
    data = JobOut.from_row(job).model_dump_json(exclude={"params"})
    return ServerSentEvent(event="ended" if job.ended else "progress", id=str(job.version), raw_data=data)
