"""The scale of the storms: short in `make test`, long with ``CISTERN_TEST_LONG=1`` (`make test-long`)."""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """The client load of a storm, and the number of faults."""

    jobs: int
    clients: int
    #: Minimum number of faults.
    faults: int
    #: Minimum duration of each storage operation, so that faults hit jobs at work.
    delay_ms: int
    seed: int


LONG = bool(os.environ.get("CISTERN_TEST_LONG"))
_SEED = int(os.environ.get("CISTERN_TEST_SEED", "1"))

SCALE = Scale(3000, 40, 6, 100, _SEED) if LONG else Scale(60, 16, 5, 150, _SEED)
