"""The outcomes of a due time. There are no moves between them: the row of a run is written once."""

import enum


class RunOutcome(enum.StrEnum):
    """What was done at a due time."""

    STARTED = "started"
    MISSED = "missed"
    SKIPPED = "skipped"
