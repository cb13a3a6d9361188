"""What becomes of a time at which a schedule was due. There is no way from one to another: a run is written once."""

import enum


class RunOutcome(enum.StrEnum):
    """What became of it."""

    STARTED = "started"
    MISSED = "missed"
    SKIPPED = "skipped"
