"""The history of a volume."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final, Self

from pydantic import BaseModel, ConfigDict, Field

from api.schemas.base import EXAMPLE_TIME
from api.schemas.fields import UtcDatetime
from api.schemas.volumes import USED
from domain.volumes.history.model import Sample
from domain.volumes.model import Volume

SAMPLE_EXAMPLE: Final[dict[str, Any]] = {"at": EXAMPLE_TIME, "size": 10737418240, "used": 4096}


class SampleOut(BaseModel):
    """The size and the used bytes of a volume at a time."""

    model_config = ConfigDict(from_attributes=True)

    at: UtcDatetime
    size: int
    used: int | None = Field(description=USED)


class HistoryOut(BaseModel):
    """The history of a volume, oldest first."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"samples": [SAMPLE_EXAMPLE]}]})

    samples: list[SampleOut] = Field(
        description="One for each hour in which the size has changed, or the used bytes by at least a hundredth of the "
        "size; the last one is of now. At most the newest 2,000 of those that `CISTERN_KEEP_HISTORY_DAYS` keeps."
    )

    @classmethod
    def of(cls, volume: Volume, samples: Sequence[Sample]) -> Self:
        """Render the samples, and the present state of the volume as the last one."""
        now = Sample(datetime.now(UTC), volume.size, volume.used)
        return cls(samples=[SampleOut.model_validate(one) for one in (*samples, now)])
