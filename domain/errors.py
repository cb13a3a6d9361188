"""The errors that Cistern raises on purpose. The first line of a docstring is the default message; none knows HTTP.

CisternError
├── ConfigurationError          the process cannot start with these settings
├── MigrationFailed             the schema is unchanged
├── Refused                     the request cannot be carried out; PreconditionFailed, TooManyDryRuns,
│   │                           TooManyHeldRequests
│   ├── NotFound                VolumeNotFound, SnapshotNotFound, JobNotFound, ScheduleNotFound, KeyNotFound,
│   │                           ProjectNotFound, WebhookNotFound, AttachmentNotFound
│   ├── Invalid                 ShrinkRefused, SizeLimitExceeded, UnknownBackend, BadCursor, IdempotencyKeyReused,
│   │                           WebhookHostRefused, UnknownNode
│   └── Conflict                VolumeBusy, VolumeUnusable, NameTaken, JobEnded, JobNotRetryable, JobIsChild,
│                            VolumeHasSnapshots, VolumeAttached, SnapshotBusy, SnapshotUnusable, ScheduleBusy,
│                            BackendOvercommitted, QuotaExceeded, ScheduleOwnerGone, TooManyWebhooks
├── Unavailable                 DatabaseUnavailable: retry in a moment
└── StorageError                a storage driver failed (tree in domain/storage/errors.py)
"""

import inspect
from collections.abc import Iterable
from datetime import datetime
from typing import Any, ClassVar
from uuid import UUID


class CisternError(Exception):
    """Something went wrong."""

    code: ClassVar[str] = "internal"

    def __init__(self, message: str | None = None, **details: Any) -> None:
        text = message or (inspect.getdoc(type(self)) or "").partition("\n")[0]
        self.message = text.replace("\0", "")  # it may be stored in a row, and PostgreSQL's text type rejects NUL
        self.details = details
        super().__init__(self.message)


class ConfigurationError(CisternError):
    """Cistern cannot start with this configuration."""

    code = "configuration"


class MigrationFailed(CisternError):
    """The migration failed; the schema is unchanged."""

    code = "migration-failed"


class Refused(CisternError):
    """The request cannot be carried out."""

    code = "refused"


class NotFound(Refused):
    """The resource does not exist."""

    code = "not-found"

    def __init__(self, resource_id: UUID) -> None:
        super().__init__(f"{inspect.getdoc(type(self))} ({resource_id})")


class VolumeNotFound(NotFound):
    """There is no volume with this id."""

    code = "volume-not-found"


class SnapshotNotFound(NotFound):
    """There is no snapshot with this id."""

    code = "snapshot-not-found"


class JobNotFound(NotFound):
    """There is no job with this id."""

    code = "job-not-found"


class KeyNotFound(NotFound):
    """There is no key with this id."""

    code = "key-not-found"


class ProjectNotFound(NotFound):
    """There is no project with this id."""

    code = "project-not-found"


class ScheduleNotFound(NotFound):
    """There is no schedule with this id."""

    code = "schedule-not-found"


class WebhookNotFound(NotFound):
    """There is no webhook with this id."""

    code = "webhook-not-found"


class AttachmentNotFound(NotFound):
    """There is no attachment with this id."""

    code = "attachment-not-found"


class Invalid(Refused):
    """A value in the request is invalid.

    ``details["field"]`` names it.
    """

    code = "invalid"

    def __init__(self, message: str | None = None, *, field: str, **details: Any) -> None:
        super().__init__(message, field=field, **details)


class ShrinkRefused(Invalid):
    """A volume can grow but never shrink."""

    code = "shrink-refused"


class SizeLimitExceeded(Invalid):
    """The volume would be larger than Cistern allows."""

    code = "size-limit-exceeded"


class UnknownBackend(Invalid):
    """There is no backend with this name."""

    code = "unknown-backend"

    def __init__(self, name: str, known: Iterable[str]) -> None:
        names = ", ".join(map(repr, known))
        message = f"There is no backend named {name!r}. There are: {names}."
        if not names:
            message = "There is no backend yet: a worker adds those of its CISTERN_BACKENDS when it starts."
        super().__init__(message, field="backend")


class UnknownNode(Invalid):
    """There is no node with this name."""

    code = "unknown-node"

    def __init__(self, name: str) -> None:
        super().__init__(f"There is no node named {name!r}: `cistern node` has not run there lately.", field="node")


class WebhookHostRefused(Invalid):
    """No webhook may be sent to this host."""

    code = "webhook-host-refused"

    def __init__(self, host: str) -> None:
        super().__init__(f"CISTERN_WEBHOOK_HOSTS does not have the host {host!r}.", field="url")


class PreconditionFailed(Refused):
    """The resource has changed since the client read it."""

    code = "precondition-failed"


class TooManyDryRuns(Refused):
    """Too many dry runs wait for their turn; try again later."""

    code = "too-many-dry-runs"


class TooManyHeldRequests(Refused):
    """Too many requests wait for jobs or follow them; try again later."""

    code = "too-many-held-requests"


class BadCursor(Invalid):
    """The cursor does not belong to this list with these filters."""

    code = "bad-cursor"


class IdempotencyKeyReused(Invalid):
    """This Idempotency-Key was already used for a different request."""

    code = "idempotency-key-reused"

    def __init__(self) -> None:
        super().__init__(field="Idempotency-Key")


class Conflict(Refused):
    """The resource is in a state that does not allow this operation."""

    code = "conflict"


class VolumeBusy(Conflict):
    """Another operation is running on this volume.

    ``details["job_id"]`` is its job.
    """

    code = "volume-busy"


class VolumeUnusable(Conflict):
    """The volume is in state "error"; delete it or retry its failed job."""

    code = "volume-unusable"


class NameTaken(Conflict):
    """Another volume has this name."""

    code = "name-taken"


class JobEnded(Conflict):
    """The job has already ended."""

    code = "job-ended"


class JobIsChild(Conflict):
    """This job is the child of another job; cancel or retry its parent.

    ``details["job_id"]`` is the parent.
    """

    code = "child-job"


class VolumeHasSnapshots(Conflict):
    """The volume has snapshots; delete them first."""

    code = "volume-has-snapshots"


class VolumeAttached(Conflict):
    """The volume is in use.

    ``details`` has the ``node``, the ``holder``, and ``since`` when.
    """

    code = "volume-attached"

    def __init__(self, *, node: str, holder: str, since: datetime) -> None:
        message = f"{holder!r} uses the volume on the node {node!r}. Detach it there first."
        super().__init__(message, node=node, holder=holder, since=since)


class SnapshotBusy(Conflict):
    """Another operation is running on this snapshot.

    ``details["job_id"]`` is its job.
    """

    code = "snapshot-busy"


class SnapshotUnusable(Conflict):
    """The snapshot is in state "error"; delete it or retry its failed job."""

    code = "snapshot-unusable"


class BackendOvercommitted(Conflict):
    """The backend has promised as much as it may.

    ``details["requested"]`` is what was requested, in bytes.
    """

    code = "backend-overcommitted"


class QuotaExceeded(Conflict):
    """A limit of the project does not allow it.

    ``details`` has the name of the limit (``quota``), what is ``left`` of it, and what was ``requested``.
    """

    code = "quota-exceeded"

    def __init__(self, *, quota: str, left: int, requested: int) -> None:
        message = f"The project's limit {quota!r} leaves room for {left}; {requested} were requested."
        super().__init__(message, quota=quota, left=left, requested=requested)


class ScheduleBusy(Conflict):
    """The job of the previous run is still active.

    ``details["job_id"]`` is that job.
    """

    code = "schedule-busy"


class ScheduleOwnerGone(Conflict):
    """The owner of the schedule has no valid key with the role owner.

    Whoever changes the schedule becomes its owner.
    """

    code = "schedule-owner-gone"

    def __init__(self, *, owner: str) -> None:
        message = f"{owner!r}, who owns the schedule, has no valid key with the role 'owner'. Change the schedule with"
        super().__init__(f"{message} another key to take it over.", owner=owner)


class TooManyWebhooks(Conflict):
    """The project has as many webhooks as it may have; delete one first."""

    code = "too-many-webhooks"


class JobNotRetryable(Conflict):
    """Only a failed, cancelled or partially succeeded job can be retried, and only once."""

    code = "job-not-retryable"


class Unavailable(CisternError):
    """A service that Cistern depends on is not responding."""

    code = "unavailable"


class DatabaseUnavailable(Unavailable):
    """PostgreSQL is not responding.

    ``reason`` has the words of the server or the library. They may name hosts: logs show them, HTTP does not.
    ``message`` has words of our own.
    """

    code = "database-unavailable"

    def __init__(self, reason: str = "", *, message: str | None = None) -> None:
        super().__init__(message)
        self.reason = " ".join(reason.split())

    def __str__(self) -> str:
        return f"{self.message.removesuffix('.')}: {self.reason}" if self.reason else self.message


class StorageError(CisternError):
    """The storage operation failed."""

    code = "storage-error"
