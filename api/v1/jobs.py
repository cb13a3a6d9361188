"""Routes of jobs: list, get, wait, cancel, retry, and follow: any API process can follow a job of any worker."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from dataclasses import asdict
from functools import partial
from typing import Annotated, Final
from uuid import UUID

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.convertors import StringConvertor, register_url_convertor

from api.acceptance import AcceptedDep, OriginDep
from api.access import require_role, role_to_request
from api.dependencies import ActorDep, PrincipalDep, ProjectDep, ServicesDep
from api.error_handlers import EarlyResponse
from api.etag import NotModifiedDep, job_tag
from api.held_requests import MAX_STREAM_SECONDS, holding
from api.openapi import BODY, POLLED, accepts, documented_get, errors
from api.problems import RETRY_SECONDS
from api.schemas.base import TextHeader
from api.schemas.jobs import JobOut, JobQuery, ManyJobsIn, ManyJobsOut
from api.schemas.pagination import Paginated, paginated_response
from domain.access.model import Principal
from domain.audit.model import Actor
from domain.errors import (
    BadCursor,
    JobEnded,
    JobIsChild,
    JobNotFound,
    JobNotRetryable,
    NameTaken,
    QuotaExceeded,
    ShrinkRefused,
    SnapshotBusy,
    SnapshotNotFound,
    SnapshotUnusable,
    TooManyHeldRequests,
    VolumeBusy,
    VolumeHasSnapshots,
    VolumeNotFound,
    VolumeUnusable,
)
from domain.jobs.model import Job
from domain.jobs.store.jobs import Change
from domain.services import Services

#: Pause between two events. Changes in between are not lost: every event has the whole job.
_PAUSE_SECONDS: Final = 0.2
#: Limited to the digits of a version: Python raises ValueError for integers with thousands of digits.
_VERSION: Final = re.compile(r"[0-9]{1,19}")


class _JobId(StringConvertor):
    """Any segment except those that are routes of their own, for every method: `/jobs/cancel`, `/jobs/retry`.

    A malformed id must reach the route, which rejects it with 422.
    """

    regex = "(?!(?:cancel|retry)(?:/|$))[^/]+"


register_url_convertor("job", _JobId())
JOB: Final = "/{job_id:job}"

router = APIRouter(prefix="/jobs", tags=["jobs"])


@router.get("", summary="List jobs", responses=errors(BadCursor))
async def list_jobs(
    query: Annotated[JobQuery, Query()], services: ServicesDep, project_id: ProjectDep
) -> Paginated[JobOut]:
    """List jobs, newest first; the children of a bulk job only with `parent_id`."""
    page = await services.jobs.list_jobs(query.filters(), query.page_of("jobs", project_id), project_id=project_id)
    return paginated_response(page, JobOut.from_row)


@router.post("/cancel", summary="Cancel all jobs that match", responses=errors(*BODY))
async def cancel_jobs(body: ManyJobsIn, services: ServicesDep, actor: ActorDep) -> ManyJobsOut:
    """Request the cancellation of the newest live jobs that match. An empty body matches all of them."""
    return await _change_all(Change.CANCEL, body, services, actor)


@router.post("/retry", summary="Retry all jobs that match", responses=errors(*BODY))
async def retry_jobs(body: ManyJobsIn, services: ServicesDep, actor: ActorDep) -> ManyJobsOut:
    """Retry the newest failed, partially succeeded and cancelled jobs that match and were not retried before."""
    return await _change_all(Change.RETRY, body, services, actor)


async def _change_all(change: Change, body: ManyJobsIn, services: Services, actor: Actor) -> ManyJobsOut:
    filters = body.filters()
    if body.dry_run:
        count = await services.many_jobs.count(change, filters, project_id=actor.project_id)
        return ManyJobsOut(accepted=0, refused={}, next_before=None, matched=count.number, more=count.more)
    changed = await services.many_jobs.change(change, filters, before=body.before, actor=actor)
    return ManyJobsOut(**asdict(changed), matched=None, more=False)


async def _job(job_id: UUID, services: ServicesDep, project_id: ProjectDep) -> Job:
    return await services.jobs.get(job_id, project_id=project_id)


@router.get(
    JOB,
    summary="Get a job, or wait for its end",
    response_model=JobOut,
    responses=documented_get("job", **POLLED) | errors(JobNotFound, TooManyHeldRequests),
)
async def get_job(
    job: Annotated[Job, Depends(_job)], accepted: AcceptedDep, response: Response, not_modified: NotModifiedDep
) -> JobOut | Response:
    """Return a job. Poll with `If-None-Match`, or send `Prefer: wait=30` to get the response when it has ended."""
    job = await accepted.wait(job)
    if not job.ended:
        response.headers["Retry-After"] = str(RETRY_SECONDS)
    return not_modified(job_tag(job)) or JobOut.whole(job)


@router.post(
    f"{JOB}/cancel", status_code=202, summary="Cancel a job", responses=accepts(JobNotFound, JobEnded, JobIsChild)
)
async def cancel_job(job_id: UUID, services: ServicesDep, origin: OriginDep, accepted: AcceptedDep) -> JobOut:
    """Request the cancellation of a job. A queued job ends at once; a running one may still succeed."""
    return await accepted(await services.jobs.cancel(job_id, origin=origin))


@router.post(
    f"{JOB}/retry",
    status_code=202,
    summary="Retry a job",
    responses=accepts(
        *(JobNotFound, JobNotRetryable, JobIsChild, NameTaken, ShrinkRefused, QuotaExceeded),
        *(VolumeNotFound, VolumeBusy, VolumeUnusable, VolumeHasSnapshots),
        *(SnapshotNotFound, SnapshotBusy, SnapshotUnusable),
    ),
)
async def retry_job(
    job_id: UUID, services: ServicesDep, principal: PrincipalDep, origin: OriginDep, accepted: AcceptedDep
) -> JobOut:
    """Create a job that repeats what an ended job did not achieve; `retry_of` has the id of the ended one."""
    ended = await services.jobs.get(job_id, project_id=principal.project.id)
    require_role(principal, role_to_request(ended.kind))
    return await accepted(await services.jobs.retry(job_id, origin=origin))


async def _held(request: Request) -> AsyncIterator[None]:
    """Count the request as held, before it costs more than that."""
    with holding(request):
        yield


async def _last_version(
    job_id: UUID,
    services: ServicesDep,
    project_id: ProjectDep,
    _: Annotated[None, Depends(_held)],
    last_event_id: Annotated[
        TextHeader[str], Header(description="The `id` of the last event received; only newer ones are sent.")
    ] = None,
) -> int | None:
    """Return the version of the job that the client has received; None if `Last-Event-ID` is absent or malformed.

    Raises:
        JobNotFound: there is no such job.
        EarlyResponse: the client has received the last version; 204 keeps an `EventSource` from reconnecting.
    """
    job = await services.jobs.get(job_id, project_id=project_id)
    version = int(last_event_id) if last_event_id and _VERSION.fullmatch(last_event_id) else None
    if job.ended and version == job.version:
        raise EarlyResponse(Response(status_code=204))
    return version


async def _states(
    job_id: UUID,
    services: ServicesDep,
    principal: PrincipalDep,
    last_version: Annotated[int | None, Depends(_last_version)],
) -> AsyncIterator[AsyncIterator[Job]]:
    """Follow the job until the response has ended, however it ends.

    FastAPI may leave the generator of a cut stream suspended at its ``yield``, until garbage collection closes it. It
    always closes a dependency.
    """
    end = partial(_end_of_stream, services, principal)
    async with aclosing(services.watcher.follow(job_id, last_version, end=end)) as states:
        yield states


async def _end_of_stream(services: Services, principal: Principal) -> None:
    """Wait until the key or the session is no longer valid, or the stream has lasted long enough."""
    with suppress(TimeoutError):
        async with asyncio.timeout(MAX_STREAM_SECONDS):
            await (services.keys if principal.session is None else services.sessions).wait_until_invalid(principal)


@router.get(
    f"{JOB}/events",
    summary="Follow a job until it ends",
    response_class=EventSourceResponse,
    responses=errors(JobNotFound, TooManyHeldRequests) | {204: {"description": "The last event was received before."}},
)
async def follow_job(states: Annotated[AsyncIterator[Job], Depends(_states)]) -> AsyncIterator[ServerSentEvent]:
    """Send an event whenever the job changes, at most five per second; the last event has the type `ended`.

    Each event has the whole job without its params, so a client that misses one needs only the next. A stream ends
    after an hour, or when the key is revoked; the client then opens the next one.
    """
    async for job in states:
        yield _event(job)
        await asyncio.sleep(_PAUSE_SECONDS)


def _event(job: Job) -> ServerSentEvent:
    data = JobOut.whole(job).model_dump_json(exclude={"params"})
    return ServerSentEvent(event="ended" if job.ended else "progress", id=str(job.version), raw_data=data)
