"""How storage work fails. The class determines whether the job is retried.

StorageError
├── TransientStorageError       worth another try later
│   ├── StorageBusy             another process holds the lock of the volume or snapshot; costs no attempt
│   └── BackendUnavailable      this process cannot use the backend now, another one may; costs no attempt
├── PermanentStorageError       trying again will not help: StorageFull, SizeUnsupported, SizeImpossible,
│                               AccessDenied, VolumeMissing, SnapshotMissing, VolumeInUse, SnapshotTorn,
│                               FilesystemFailed
├── FenceRefused                a later attempt has already published or sealed; this one is superseded
└── Stopped                     the worker stopped the attempt, or its lease has ended
"""

from domain.errors import StorageError


class TransientStorageError(StorageError):
    """The storage failed in a way that may be temporary."""

    code = "storage-unavailable"


class StorageBusy(TransientStorageError):
    """Another process holds the lock of this volume or snapshot."""

    code = "storage-busy"


class BackendUnavailable(TransientStorageError):
    """This process cannot use the backend now."""

    code = "backend-unavailable"


class PermanentStorageError(StorageError):
    """The storage refused the operation, and will refuse it again."""

    code = "storage-refused"


class StorageFull(PermanentStorageError):
    """There is no space left on the backend."""

    code = "storage-full"


class SizeUnsupported(PermanentStorageError):
    """The backend cannot hold a volume of this size."""

    code = "size-unsupported"


class SizeImpossible(PermanentStorageError):
    """The backend reports a size that no volume can have."""

    code = "size-impossible"


class AccessDenied(PermanentStorageError):
    """The backend does not permit writing."""

    code = "storage-denied"


class VolumeMissing(PermanentStorageError):
    """The volume's data is not on the backend."""

    code = "volume-missing"


class SnapshotMissing(PermanentStorageError):
    """The snapshot's data is not on the backend."""

    code = "snapshot-missing"


class VolumeInUse(PermanentStorageError):
    """A process or a loop device on the worker's host has the volume's file open."""

    code = "volume-in-use"


class SnapshotTorn(PermanentStorageError):
    """The volume is being written to and its blocks cannot be shared, so a snapshot would mix several moments."""

    code = "snapshot-torn"


class FilesystemFailed(PermanentStorageError):
    """The volume's file system cannot be made or grown."""

    code = "filesystem-failed"


class FenceRefused(StorageError):
    """A later attempt has already published on this volume or snapshot, or sealed it."""

    code = "fence-refused"

    def __init__(self, message: str | None = None, *, stored: tuple[int, int] | None = None) -> None:
        """``stored`` is the fence on the storage; None if the driver does not tell."""
        super().__init__(message)
        self.stored = stored
