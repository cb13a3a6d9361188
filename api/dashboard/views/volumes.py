"""What the pages of volumes show."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from api.dashboard.queries import VolumesQuery
from api.dashboard.views.jobs import JobLine, lines_of
from domain.access.model import Principal
from domain.db.pagination import PageRequest
from domain.jobs.store.jobs import JobFilter
from domain.operations import SnapshotState, VolumeState
from domain.services import Services
from domain.snapshots.model import Snapshot
from domain.snapshots.repository import SnapshotFilter
from domain.volumes.attachments.model import Attachment, Mount
from domain.volumes.attachments.repository import AttachmentFilter
from domain.volumes.model import Volume


@dataclass(frozen=True)
class VolumesPage:
    """A page of the list of volumes."""

    volumes: Sequence[Volume]
    next_cursor: str | None
    backends: Sequence[str]


@dataclass(frozen=True)
class VolumePage:
    """One volume, with what belongs to it. Lists are of the newest, and say whether there are more."""

    volume: Volume
    path: str | None
    snapshots: Sequence[Snapshot]
    more_snapshots: bool
    jobs: Sequence[JobLine]
    attachments: Sequence[Attachment]
    more_attachments: bool
    mount: Mount | None

    @property
    def is_idle(self) -> bool:
        """Whether an operation can begin."""
        return self.volume.state in (VolumeState.AVAILABLE, VolumeState.ERROR)

    @property
    def is_available(self) -> bool:
        """Whether it can be expanded, attached and detached, and snapshots of it taken and restored."""
        return self.volume.state is VolumeState.AVAILABLE

    @property
    def in_use(self) -> str | None:
        """Who has it, and where, which is why it can be neither deleted nor restored; None if nobody has."""
        if not self.attachments:
            return None
        one, others = self.attachments[0], " and others" if len(self.attachments) > 1 else ""
        return f"It is attached on {one.node} for {one.holder}{others}: detach it first"


def is_usable(snapshot: Snapshot) -> bool:
    """Return whether an operation on a snapshot can begin."""
    return snapshot.state is SnapshotState.READY


async def volumes_of_query(services: Services, query: VolumesQuery, principal: Principal) -> VolumesPage:
    """Return the volumes on a page of the list.

    Raises:
        BadCursor: the cursor is not from this list.
    """
    project_id = principal.project.id
    request = query.page_of("volumes page", project_id)
    page = await services.volumes.list_volumes(query.filters(), request, project_id=project_id)
    return VolumesPage(page.items, page.next_cursor, [one.name for one in services.directory.all()])


async def volume_page(services: Services, volume_id: UUID, principal: Principal) -> VolumePage:
    """Read what the page of a volume shows.

    Raises:
        VolumeNotFound: no such volume.
    """
    project_id = principal.project.id
    volume = await services.volumes.get(volume_id, project_id=project_id)
    request = PageRequest("volume page", limit=20)
    snapshots = await services.snapshots.list_snapshots(
        SnapshotFilter(volume_id=volume_id), request, project_id=project_id
    )
    attached, _ = await services.attachments.list_attachments(
        AttachmentFilter(volume_id=volume_id), request, project_id=project_id
    )
    jobs = await services.jobs.list_jobs(JobFilter(volume_id=volume_id), request, project_id=project_id)
    return VolumePage(
        volume=volume,
        path=services.volumes.path(volume),
        snapshots=snapshots.items,
        more_snapshots=snapshots.next_cursor is not None,
        jobs=await lines_of(services, jobs.items, principal),
        attachments=attached.items,
        more_attachments=attached.next_cursor is not None,
        mount=await services.attachments.mount_of(volume_id),
    )
