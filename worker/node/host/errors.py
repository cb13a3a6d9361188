"""How an operation of the host fails. The class determines whether a job is retried (domain/storage/errors.py).

TransientStorageError
├── HostBusy                    something on the host still uses the volume: DeviceInUse, MountInUse, AlreadyFrozen
├── HostStuck                   the kernel or a tool has not answered in time
└── HostFailed                  a tool or a system call failed for another reason; FreezeFailed
PermanentStorageError
├── HostUnable                  the host lacks a tool, a kernel feature or a permission
├── TargetRefused               the directory cannot become a mount point: it is not empty, or something else is mounted
├── VolumeFileInUse             a loop device that is not this node's has the file
├── AttachmentStale             the node still has an earlier file of the volume
└── GrowthRefused               the file system could not be grown
"""

from domain.storage.errors import PermanentStorageError, TransientStorageError


class HostBusy(TransientStorageError):
    """Something on the node still uses the volume."""

    code = "node-busy"


class DeviceInUse(HostBusy):
    """The loop device is still open or mounted somewhere on the node."""


class MountInUse(HostBusy):
    """The file system is still in use on the node."""


class AlreadyFrozen(HostBusy):
    """The file system is already frozen."""


class HostStuck(TransientStorageError):
    """The node's kernel or one of its tools has not answered in time."""

    code = "node-stuck"


class HostFailed(TransientStorageError):
    """The node could not do what was asked of it."""

    code = "node-failed"


class FreezeFailed(HostFailed):
    """The file system could not be frozen."""


class HostUnable(PermanentStorageError):
    """The node lacks a tool, a kernel feature or a permission."""

    code = "node-unable"


class TargetRefused(PermanentStorageError):
    """The directory cannot become a mount point."""

    code = "target-refused"


class VolumeFileInUse(PermanentStorageError):
    """The volume's file is used by a loop device that is not this node's."""

    code = "volume-in-use"


class AttachmentStale(PermanentStorageError):
    """The node still has an earlier file of this volume attached."""

    code = "attachment-stale"


class GrowthRefused(PermanentStorageError):
    """The file system could not be grown."""

    code = "filesystem-failed"
