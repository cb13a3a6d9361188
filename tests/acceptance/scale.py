"""How long storms are: short ones in `make test`, long ones with ``CISTERN_LONG=1``."""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """How much is asked for, by how many customers, and how much it must stand."""

    jobs: int
    customers: int
    #: At least so many.
    strikes: int
    #: How long each storage operation takes at least, so that strikes hit it.
    delay_ms: int
    seed: int


LONG = bool(os.environ.get("CISTERN_LONG"))
_SEED = int(os.environ.get("CISTERN_SEED", "1"))

SCALE = Scale(3000, 40, 6, 100, _SEED) if LONG else Scale(60, 16, 5, 150, _SEED)
