"""``Prefer: wait=N`` (RFC 7240): how long the response may be delayed until the job has ended."""

import re
from collections.abc import Sequence
from typing import Final

MAX_WAIT_SECONDS: Final = 30

_WAIT: Final = re.compile(r'wait\s*=\s*("?)([0-9]{1,9})\1', re.IGNORECASE | re.ASCII)


def preferred_wait(prefer: Sequence[str]) -> int | None:
    """Return the seconds to wait from all `Prefer` headers of a request, at most MAX_WAIT_SECONDS.

    As RFC 7240 demands, the first of several `wait` preferences counts, and an invalid one is ignored.
    """
    for preference in ",".join(prefer).split(","):
        if match := _WAIT.fullmatch(preference.partition(";")[0].strip()):
            return min(int(match[2]), MAX_WAIT_SECONDS)
    return None
