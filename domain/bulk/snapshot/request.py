"""Of which volumes a bulk job takes snapshots, what these are called, and which a schedule keeps."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Self

from domain.bulk.selection import DEFAULT_CONCURRENT, Selection, from_request
from domain.errors import Invalid
from domain.snapshots.retention import RetentionRule
from domain.volumes.model import MAX_NAME

#: So much is added to a name to tell the snapshots of one run from those of all others.
_STAMP_LENGTH: Final = len("-20260131T235959123Z")
MAX_PREFIX: Final = MAX_NAME - _STAMP_LENGTH
#: What is meant where nothing is said: no name, which is refused, and all are kept.
_UNSET: Final[dict[str, Any]] = {"name": "", "keep_last": None, "keep_days": None}


@dataclass(frozen=True)
class BulkSnapshotRequest:
    """One request to take snapshots of many volumes, of ``max_concurrent`` at once over the whole fleet.

    ``name`` is what all their names begin with.
    """

    name: str
    selection: Selection = field(default_factory=Selection)
    max_concurrent: int = DEFAULT_CONCURRENT
    keep: RetentionRule = field(default_factory=RetentionRule)

    def __post_init__(self) -> None:
        """Refuse what makes no sense, naming the field."""
        if not 1 <= len(self.name) <= MAX_PREFIX:
            raise Invalid(f"`name` must have 1 to {MAX_PREFIX} characters; the time is added to it.", field="name")

    def to_json(self) -> dict[str, Any]:
        """Say it as JSON, for the job."""
        whole = {"name": self.name, "selection": self.selection.to_json(), "max_concurrent": self.max_concurrent}
        return whole | self.keep.to_json()

    @classmethod
    def from_json(cls, params: dict[str, Any]) -> Self:
        """Read it from a job."""
        selection, keep = (
            Selection.from_json(params["selection"]),
            RetentionRule(params["keep_last"], params["keep_days"]),
        )
        return cls(params["name"], selection, params["max_concurrent"], keep)

    @classmethod
    def from_request(cls, wish: dict[str, Any]) -> Self:
        """Read it in the words in which a client asks for it.

        Raises:
            Invalid: naming the member that makes no sense.
        """
        return cls.from_json(_UNSET | from_request(wish, own=_UNSET))


def stamped(name: str, moment: datetime) -> str:
    """Make the name of the snapshots of one run; ``moment`` in UTC, to the millisecond."""
    return f"{name}-{moment:%Y%m%dT%H%M%S}{moment.microsecond // 1000:03}Z"
