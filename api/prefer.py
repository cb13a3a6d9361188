"""``Prefer: wait=N`` (RFC 7240): how long a client would like the answer to be held until its job has ended."""

import re
from collections.abc import Sequence
from typing import Final

MAX_WAIT_SECONDS: Final = 30

_WAIT: Final = re.compile(r'wait\s*=\s*("?)([0-9]{1,9})\1', re.IGNORECASE | re.ASCII)


def preferred_wait(prefer: Sequence[str]) -> int | None:
    """Find the seconds to wait in all `Prefer` headers of a request; what makes no sense is ignored.

    The first of several wishes counts, as RFC 7240 has it, and nobody gets more than half a minute.
    """
    for preference in ",".join(prefer).split(","):
        if found := _WAIT.fullmatch(preference.partition(";")[0].strip()):
            return min(int(found[2]), MAX_WAIT_SECONDS)
    return None
