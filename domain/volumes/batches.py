"""The requests that are accepted in batches: `domain.volumes.service` says how."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple
from uuid import UUID

from domain.audit.model import Actor
from domain.errors import QuotaExceeded
from domain.jobs.acceptance import RequestOrigin
from domain.jobs.model import Job
from domain.projects.quota import Room
from domain.volumes.model import Growth, Volume


class CreateRequest(NamedTuple):
    """A volume to create, the job that creates it, and who asks for it."""

    volume: Volume
    job: Job
    actor: Actor


class ExpandRequest(NamedTuple):
    """A volume to expand, by how much, who asks for it, and in which trace."""

    volume_id: UUID
    growth: Growth
    actor: Actor
    trace: object


def limited_project(origin: RequestOrigin) -> UUID | None:
    """Return the project of a request if it has limits: only then are its requests accepted apart from others."""
    return origin.actor.project_id if origin.actor.is_limited else None


def beyond_limits(requests: Sequence[CreateRequest], rooms: Mapping[UUID, Room]) -> dict[UUID, QuotaExceeded]:
    """Take the room for new volumes, and return the refusal of each for which none is left."""
    refused = {}
    for volume, _, actor in requests:
        try:
            if actor.project_id in rooms:
                rooms[actor.project_id].take(volumes=1, bytes=volume.size, queued_jobs=1)
        except QuotaExceeded as error:
            refused[volume.id] = error
    return refused
