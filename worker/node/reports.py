"""What a node reports of a file system."""

from uuid import UUID

from domain.errors import StorageError
from domain.volumes.attachments.model import FilesystemReport
from worker.node.host.host import HostProtocol


async def report_of(
    host: HostProtocol, volume_id: UUID, filesystem: str | None, grown_to: int | None = None, error: str | None = None
) -> FilesystemReport:
    """Measure the file system of a volume, as far as it can be measured now.

    ``grown_to`` is the size of the volume in bytes up to which it has just been grown, or ``error`` why it was not;
    without either, both stay as they are known.
    """
    if filesystem is None:
        return FilesystemReport(grown_to=grown_to)
    try:
        found = await host.usage(volume_id)
    except StorageError:  # not mounted, or it does not answer: the next look tries again
        return FilesystemReport(grown_to=grown_to, error=error)
    used = found.size - found.available  # what is reserved for root cannot be used by others
    return FilesystemReport(
        found.size, used, found.available, found.inodes, found.inodes_used, grown_to=grown_to, error=error
    )
