"""What pollers of a job are sent; that of ended jobs is remembered for a while, for they never change."""

import time
from dataclasses import dataclass
from typing import Final, NamedTuple

from api.etag import job_tag
from api.problems import RETRY_SECONDS
from api.schemas.responses import JobOut
from domain.jobs.model import Job

#: Not for long, because retention forgets jobs; and not much, because a job may be large.
_CACHE_SECONDS: Final = 30.0
_MAX_JOBS: Final = 4096
_MAX_BODY_BYTES: Final = 4096


class RenderedJob(NamedTuple):
    """A job as it is shown."""

    tag: str
    headers: list[tuple[bytes, bytes]]
    body: bytes
    ended: bool


def render(job: Job) -> RenderedJob:
    """Show a job as it is now; one that has not ended says when to ask again."""
    tag = job_tag(job)
    again = [] if job.ended else [(b"retry-after", b"%d" % RETRY_SECONDS)]
    return RenderedJob(
        tag, [*again, (b"etag", tag.encode())], JobOut.from_row(job).model_dump_json().encode(), job.ended
    )


@dataclass(frozen=True)
class _CachedJob:
    shown: RenderedJob
    until: float


class EndedJobCache:
    """The ended jobs that were asked for last."""

    def __init__(self) -> None:
        self._kept: dict[str, _CachedJob] = {}

    def recall(self, job_id: str) -> RenderedJob | None:
        """Show a job that was shown a moment ago, if it had ended then."""
        kept = self._kept.get(job_id)
        return kept.shown if kept is not None and time.monotonic() < kept.until else None

    def keep(self, job_id: str, job: RenderedJob) -> None:
        """Remember how a job was shown, if that will never change."""
        if not job.ended or len(job.body) > _MAX_BODY_BYTES:
            return
        self._kept.pop(job_id, None)  # so that the first is always the oldest
        self._kept[job_id] = _CachedJob(job, time.monotonic() + _CACHE_SECONDS)
        if len(self._kept) > _MAX_JOBS:
            del self._kept[next(iter(self._kept))]
