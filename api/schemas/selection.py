"""How clients say which volumes, of many, and how many at once."""

from typing import Annotated

from pydantic import Field

from api.schemas.base import Body
from api.schemas.fields import MAX_CONCURRENT, BackendName, Labels, VolumeIds
from api.schemas.omittable import Given
from domain.bulk.selection import DEFAULT_CONCURRENT, Selection


class SelectionIn(Body):
    """Which volumes, and how many at once."""

    ids: Annotated[Given[VolumeIds], Field(description="Only these. One that does not exist is in the ledger.")] = None
    labels: Annotated[Labels, Field(description="Only volumes with all of these.")] = Field(default_factory=dict)
    backend: Annotated[Given[BackendName], Field(description="Only volumes on this backend.")] = None
    max_concurrent: Annotated[
        int, Field(ge=1, le=MAX_CONCURRENT, strict=True, description="How many at once, over all workers.")
    ] = DEFAULT_CONCURRENT

    def selection(self) -> Selection:
        """Say which volumes to the domain."""
        return Selection(None if self.ids is None else tuple(self.ids), self.labels, self.backend)
