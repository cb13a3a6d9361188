"""Attachments and nodes: the body that attaches a volume, list filters, and the responses."""

import posixpath
from collections.abc import Sequence
from typing import Annotated, Any, Final, Self
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from api.schemas.base import EXAMPLE_TIME, EXAMPLE_VOLUME_ID, Omittable, RequestBody
from api.schemas.fields import UtcDatetime
from api.schemas.pagination import PageQuery
from domain.settings import NODE_NAME
from domain.volumes.attachments.model import Attachment, AttachmentState, Mode
from domain.volumes.attachments.repository import AttachmentFilter
from domain.volumes.attachments.service import NewAttachment, Node

ATTACHMENT_EXAMPLE: Final[dict[str, Any]] = {
    "id": "01a0b1c2-0000-7000-8000-000000000008",
    "volume_id": EXAMPLE_VOLUME_ID,
    "volume_name": "postgres-1",
    "node": "web-1",
    "holder": "cli",
    "mode": "rw",
    "path": "/srv/postgres",
    "state": "attached",
    "generation": 3,
    "device": "/dev/loop7",
    "created_at": EXAMPLE_TIME,
}
NODE_EXAMPLE: Final[dict[str, Any]] = {
    "name": "web-1",
    "host": "web-1",
    "is_alive": True,
    "seen_at": EXAMPLE_TIME,
    "attachments": 1,
}


def _plain_path(path: str) -> str:
    """Require an absolute path in its shortest form.

    Raises:
        ValueError: it is another one.
    """
    if posixpath.normpath(path) != path or path == "/" or path.startswith("//"):  # which `normpath` keeps
        raise ValueError("must be the path of a directory below /, without `.`, `..` and superfluous slashes")
    return path


NodeName = Annotated[str, StringConstraints(pattern=f"^{NODE_NAME}$"), Field(examples=["web-1"])]
Holder = Annotated[
    str,
    StringConstraints(pattern=r"^[^\x00-\x1f\x7f-\x9f]{1,512}$"),
    Field(description="What the consumer calls itself: one holder has a volume once.", examples=["cli"]),
]
HostPath = Annotated[str, StringConstraints(pattern=r"^/[^\x00-\x1f\x7f-\x9f]{1,4000}$"), AfterValidator(_plain_path)]


class AttachmentIn(RequestBody):
    """A volume that a holder wants on a node."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"node": "web-1", "holder": "cli", "path": "/srv/postgres"}]}
    )

    node: NodeName
    holder: Holder
    mode: Annotated[Mode, Field(description="Whether the holder may write.")] = Mode.READ_WRITE
    path: Annotated[
        HostPath | None,
        Field(
            description="Where the holder wants the file system on the node: a directory that is empty, or is made. "
            "Null: the holder uses the directory that the node has mounted it at."
        ),
    ] = None

    @model_validator(mode="after")
    def _read_only_at_a_path(self) -> Self:
        if self.mode is Mode.READ_ONLY and self.path is None:
            raise ValueError("a holder with the mode `ro` needs a `path` of its own")
        return self

    def new_attachment(self) -> NewAttachment:
        """Convert to the domain request."""
        return NewAttachment(self.node, self.holder, self.mode, self.path)


class DetachQuery(BaseModel):
    """How a volume is detached."""

    model_config = ConfigDict(extra="forbid")

    force: Annotated[
        bool,
        Field(
            description="Take the volume from all its holders although their node does not answer. What the node has "
            "not written yet is lost."
        ),
    ] = False


class AttachmentsOfVolumeQuery(PageQuery):
    """Filters of a list of one volume's attachments."""

    node: Omittable[NodeName] = None
    holder: Omittable[Holder] = None

    def filters(self, volume_id: UUID | None) -> AttachmentFilter:
        """Convert to the domain filter."""
        return AttachmentFilter(volume_id, self.node, self.holder)


class AttachmentQuery(AttachmentsOfVolumeQuery):
    """Filters of a list of all attachments."""

    volume_id: Omittable[UUID] = None


class AttachmentOut(BaseModel):
    """One attachment: a volume that a holder has on a node."""

    model_config = ConfigDict(from_attributes=True, json_schema_extra={"examples": [ATTACHMENT_EXAMPLE]})

    id: UUID
    volume_id: UUID
    volume_name: str | None = Field(None, description="The name of the volume.")
    node: str
    holder: str
    mode: Mode
    path: str | None = Field(description="Where the holder wants it; null: where the node has mounted it.")
    state: AttachmentState
    generation: int = Field(description="The version of the volume that attaching it has raised.")
    device: str | None = Field(None, description="The loop device of the volume on the node, once it has one.")
    created_at: UtcDatetime

    @classmethod
    def of(cls, row: Attachment, volume_name: str | None, device: str | None) -> Self:
        """Render a row."""
        return cls.model_validate(row).model_copy(update={"volume_name": volume_name, "device": device})


class NodeOut(BaseModel):
    """One node: a host that uses volumes."""

    model_config = ConfigDict(from_attributes=True, json_schema_extra={"examples": [NODE_EXAMPLE]})

    name: str
    host: str | None = Field(description="The host of its agent; null if none has run within the hour.")
    is_alive: bool = Field(description="Whether the heartbeat of its agent is current.")
    seen_at: UtcDatetime | None = Field(description="The last heartbeat of its agent.")
    attachments: int = Field(description="How many attachments of the project it has.")


class NodesOut(BaseModel):
    """All nodes, by name."""

    items: list[NodeOut]

    @classmethod
    def of(cls, nodes: Sequence[Node]) -> Self:
        """Render the nodes."""
        return cls(items=[NodeOut.model_validate(one) for one in nodes])
