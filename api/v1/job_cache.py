"""Rendered jobs for polling clients. Ended jobs never change, so their responses are cached for a while."""

import time
from dataclasses import dataclass
from typing import Final, NamedTuple
from uuid import UUID

from api.etag import job_tag
from api.problems import RETRY_SECONDS
from api.schemas.jobs import JobOut
from domain.jobs.model import Job

#: Short, because retention deletes jobs.
_CACHE_SECONDS: Final = 30.0
#: Both limit the memory of the cache: a job may be large.
_MAX_JOBS: Final = 4096
_MAX_BODY_BYTES: Final = 4096


class RenderedJob(NamedTuple):
    """A job as a response."""

    tag: str
    headers: list[tuple[bytes, bytes]]
    body: bytes
    ended: bool


def render(job: Job) -> RenderedJob:
    """Render a job; the response for one that has not ended has a `Retry-After` header."""
    tag = job_tag(job)
    retry_after = [] if job.ended else [(b"retry-after", b"%d" % RETRY_SECONDS)]
    headers = [*retry_after, (b"etag", tag.encode())]
    return RenderedJob(tag, headers, JobOut.whole(job).model_dump_json().encode(), job.ended)


@dataclass(frozen=True)
class _Entry:
    job: RenderedJob
    expires: float


class EndedJobCache:
    """The responses of the ended jobs that were requested last."""

    def __init__(self) -> None:
        self._entries: dict[tuple[UUID, str], _Entry] = {}

    def get(self, project_id: UUID, job_id: str) -> RenderedJob | None:
        """Return the cached response of a job of a project; None if there is none or it has expired."""
        entry = self._entries.get((project_id, job_id))
        return entry.job if entry is not None and time.monotonic() < entry.expires else None

    def put(self, project_id: UUID, job_id: str, job: RenderedJob) -> None:
        """Store the response of a job if the job has ended and the body is small; evict the oldest entry if full."""
        if not job.ended or len(job.body) > _MAX_BODY_BYTES:
            return
        key = (project_id, job_id)
        self._entries.pop(key, None)  # keeps the dict in order of age
        self._entries[key] = _Entry(job, time.monotonic() + _CACHE_SECONDS)
        if len(self._entries) > _MAX_JOBS:
            del self._entries[next(iter(self._entries))]
