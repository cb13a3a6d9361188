"""Every error Cistern raises on purpose. An error's docstring is its default message; none knows HTTP.

CisternError
├── ConfigurationError          the process cannot start as it is set up
├── MigrationFailed             the schema is as it was before
├── Refused                     the request cannot be carried out as it stands
│   ├── NotFound                VolumeNotFound, SnapshotNotFound, JobNotFound, ScheduleNotFound
│   ├── Invalid                 ShrinkRefused, SizeLimitExceeded, UnknownBackend, BadCursor, IdempotencyKeyReused
│   └── Conflict                VolumeBusy, VolumeUnusable, NameTaken, JobEnded, JobNotRetryable, JobIsPart,
│                            VolumeHasSnapshots, SnapshotBusy, SnapshotUnusable, ScheduleBusy
├── Unavailable                 DatabaseUnavailable: come back in a moment
└── StorageError                what a driver could not do (tree in domain/storage/driver.py)
"""

import inspect
from typing import Any, ClassVar
from uuid import UUID


class CisternError(Exception):
    """Something went wrong."""

    code: ClassVar[str] = "internal"

    def __init__(self, message: str | None = None, **details: Any) -> None:
        said = message or (inspect.getdoc(type(self)) or "").partition("\n")[0]
        self.message = said.replace("\0", "")  # it may have to be written down, and PostgreSQL's texts have none
        self.details = details
        super().__init__(self.message)


class ConfigurationError(CisternError):
    """Cistern cannot start with this configuration."""

    code = "configuration"


class MigrationFailed(CisternError):
    """The migration failed, and the schema is as it was before it."""

    code = "migration-failed"


class Refused(CisternError):
    """The request cannot be carried out."""

    code = "refused"


class NotFound(Refused):
    """There is no such thing."""

    code = "not-found"

    def __init__(self, wanted: UUID) -> None:
        super().__init__(f"{inspect.getdoc(type(self))} ({wanted})")


class VolumeNotFound(NotFound):
    """There is no volume with this id."""

    code = "volume-not-found"


class SnapshotNotFound(NotFound):
    """There is no snapshot with this id."""

    code = "snapshot-not-found"


class JobNotFound(NotFound):
    """There is no job with this id."""

    code = "job-not-found"


class ScheduleNotFound(NotFound):
    """There is no schedule with this id."""

    code = "schedule-not-found"


class Invalid(Refused):
    """A value in the request cannot be used.

    ``field`` in ``details`` names it.
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


class BadCursor(Invalid):
    """The cursor was not given out by this list with these filters."""

    code = "bad-cursor"


class IdempotencyKeyReused(Invalid):
    """This Idempotency-Key was used for another request."""

    code = "idempotency-key-reused"

    def __init__(self) -> None:
        super().__init__(field="Idempotency-Key")


class Conflict(Refused):
    """The thing is not in a state that allows this."""

    code = "conflict"


class VolumeBusy(Conflict):
    """Another operation is running on this volume.

    ``job_id`` in ``details`` is its job.
    """

    code = "volume-busy"


class VolumeUnusable(Conflict):
    """The volume is in the state "error"; it can be deleted, or its failed job retried."""

    code = "volume-unusable"


class NameTaken(Conflict):
    """Another volume has this name."""

    code = "name-taken"


class JobEnded(Conflict):
    """The job has already ended."""

    code = "job-ended"


class JobIsChild(Conflict):
    """This job is a part of another one; cancel or retry that.

    ``job_id`` in ``details`` is the whole.
    """

    code = "child-job"


class VolumeHasSnapshots(Conflict):
    """The volume has snapshots; delete them first."""

    code = "volume-has-snapshots"


class SnapshotBusy(Conflict):
    """Another operation is running on this snapshot.

    ``job_id`` in ``details`` is its job.
    """

    code = "snapshot-busy"


class SnapshotUnusable(Conflict):
    """The snapshot is in the state "error"; it can be deleted, or its failed job retried."""

    code = "snapshot-unusable"


class ScheduleBusy(Conflict):
    """The job of the run before is still going.

    ``job_id`` in ``details`` is that job.
    """

    code = "schedule-busy"


class JobNotRetryable(Conflict):
    """Only a job that failed, was cancelled or ended partially can be retried, and only once."""

    code = "job-not-retryable"


class Unavailable(CisternError):
    """A part that Cistern needs does not answer at the moment."""

    code = "unavailable"


class DatabaseUnavailable(Unavailable):
    """PostgreSQL does not answer at the moment."""

    code = "database-unavailable"


class StorageError(CisternError):
    """The storage could not do it."""

    code = "storage-error"
