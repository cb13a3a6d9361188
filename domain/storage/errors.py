"""How storage work fails. The class says whether another attempt makes sense."""

from domain.errors import StorageError


class TransientStorageError(StorageError):
    """The storage failed in a way that may pass."""

    code = "storage-unavailable"


class StorageBusy(TransientStorageError):
    """Another process holds the lock of this volume or snapshot."""

    code = "storage-busy"


class PermanentStorageError(StorageError):
    """The storage refused, and will refuse again."""

    code = "storage-refused"


class StorageFull(PermanentStorageError):
    """There is no room left on the backend."""

    code = "storage-full"


class SizeUnsupported(PermanentStorageError):
    """The backend cannot hold a volume of this size."""

    code = "size-unsupported"


class AccessDenied(PermanentStorageError):
    """The backend may not be written to."""

    code = "storage-denied"


class VolumeMissing(PermanentStorageError):
    """The volume's data is not on the backend."""

    code = "volume-missing"


class SnapshotMissing(PermanentStorageError):
    """The snapshot's data is not on the backend."""

    code = "snapshot-missing"


class FenceRefused(StorageError):
    """A later attempt has already published on this volume or snapshot."""

    code = "fence-refused"
