"""``If-None-Match``: a client that has seen a thing as it is now is not sent it again."""

from collections.abc import Sequence
from typing import Annotated

from fastapi import Depends, Header, Response

from api.schemas.omittable import HEADER_TEXT
from domain.jobs.model import Job
from domain.snapshots.model import Snapshot
from domain.volumes.model import Volume


def job_tag(job: Job) -> str:
    """Name a job as it is now."""
    return f'"{job.id}-{job.version}"'


def row_tag(row: Volume | Snapshot) -> str:
    """Name a volume or snapshot as it is now; a change that is no operation raises no version."""
    return f'"{row.id}-{row.version}-{row.updated_at.timestamp():.6f}"'


def matches(tags: Sequence[str], tag: str) -> bool:
    """Look a tag up in all `If-None-Match` headers of a request; compared weakly, as RFC 9110 asks for here."""
    return not {tag, "*"}.isdisjoint(seen.strip().removeprefix("W/") for seen in ",".join(tags).split(","))


class ConditionalGet:
    """What a client has seen before."""

    def __init__(self, tags: list[str], response: Response) -> None:
        self._tags = tags
        self._headers = response.headers

    def unchanged(self, tag: str) -> Response | None:
        """Answer 304 if the client has seen ``tag``."""
        self._headers["ETag"] = tag
        return Response(status_code=304, headers=dict(self._headers)) if matches(self._tags, tag) else None


async def _conditional(
    response: Response,
    if_none_match: Annotated[
        list[str] | None, Header(description="An `ETag` that was seen before."), HEADER_TEXT
    ] = None,
) -> ConditionalGet:
    return ConditionalGet(if_none_match or [], response)


IfNoneMatchDep = Annotated[ConditionalGet, Depends(_conditional)]
