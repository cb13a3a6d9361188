"""How much one caller may ask of this process per second: a key, or the address of a client without a valid one.

All keys of a project together have `PROJECT_SHARE` times what one key has: its owners may make any number of keys.

The generic cell rate algorithm: one time per key, project or address, at which all that it has used will have been
earned back. It needs neither Redis nor a timer, and works the same while everything else is down.
"""

import math
import time
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple
from uuid import UUID

from api.access import ROUTES, row_of
from api.dependencies import V0_PATH, V1_PATH
from api.security_headers import RawHeaders

#: How many seconds' worth a caller may use at once, after it has used nothing for as long.
BURST_SECONDS: Final = 10
#: How many times the share of one key a whole project has.
PROJECT_SHARE: Final = 10
_MAX_CALLERS: Final = 10_000
#: By how many seconds the sum of many small costs may be off.
_TOLERANCE: Final = 1e-6

_SINGLE, _LIST, _WRITE, _BULK = 1, 5, 10, 50
#: What does not follow from the method and the path. Load balancers must reach the probes whatever others do.
_EXCEPTIONS: Final[Mapping[tuple[str, str], int]] = {
    ("GET", "/healthz"): 0,
    ("GET", "/readyz"): 0,
    ("POST", f"{V0_PATH}/volumes/expand"): _BULK,
    ("POST", f"{V1_PATH}/volumes/expand"): _BULK,
    ("POST", f"{V1_PATH}/volumes/snapshots"): _BULK,
    ("POST", f"{V1_PATH}/jobs/cancel"): _BULK,
    ("POST", f"{V1_PATH}/jobs/retry"): _BULK,
    ("POST", f"{V1_PATH}/schedules/{{}}/run"): _BULK,
}
_WRITES: Final = frozenset({"POST", "PATCH", "DELETE"})


def _weight(method: str, path: str) -> int:
    """Return the units of a route.

    Raises:
        ValueError: they do not follow from its method.
    """
    if (exception := _EXCEPTIONS.get((method, path))) is not None:
        return exception
    if method in _WRITES:
        return _WRITE
    if method != "GET":
        raise ValueError(f"{method} {path} has no weight")
    return _LIST if path.startswith("/api/") and not path.endswith("{}") else _SINGLE


#: The units that a request takes, for each route of the table of `api.access`.
WEIGHTS: Final[Mapping[str, Mapping[str, int]]] = {
    path: {method: _weight(method, path) for method in roles} for path, roles in ROUTES.items()
}


def weight_of(method: str, path: str) -> int:
    """Return the units that a request takes; one that no route answers takes one."""
    row = row_of(path)
    return _SINGLE if row is None else WEIGHTS[row].get("GET" if method == "HEAD" else method, _SINGLE)


class Decision(NamedTuple):
    """Whether a request may pass, and what its caller has left."""

    allowed: bool
    #: Units.
    remaining: int
    #: Until the request may be sent again if it is refused, else until the caller has all units again; in seconds.
    seconds: int


class RateLimiter:
    """The callers of one process, and what each of them has used."""

    def __init__(self, rate: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Create the limiter; ``rate`` in units per second, of which a burst must hold the largest weight."""
        self._rate = rate
        self._clock = clock
        #: When each caller and project will have earned back all it has used; the one that was seen last comes last.
        self._restored_at: dict[UUID | str, float] = {}
        burst = int(rate * BURST_SECONDS)
        self._policy = (b"ratelimit-policy", b'"default";q=%d;w=%d' % (burst, BURST_SECONDS))

    def spend(self, caller: UUID | str, units: int, *, project: UUID | None = None) -> Decision:
        """Take units from a caller, and from its project if one is given.

        If either has too few left, both keep them. What is left is what both have.
        """
        now = self._clock()
        rates = {caller: self._rate} if project is None else {caller: self._rate, project: self._rate * PROJECT_SHARE}
        used = {one: max(0.0, self._restored_at.pop(one, now) - now) for one in rates}  # in seconds
        after = {one: used[one] + units / rate for one, rate in rates.items()}
        missing = max(after.values()) - BURST_SECONDS
        allowed = missing <= _TOLERANCE
        if allowed:
            used = after
        self._restored_at |= {one: now + seconds for one, seconds in used.items()}
        while len(self._restored_at) > _MAX_CALLERS:
            del self._restored_at[next(iter(self._restored_at))]
        remaining = min(int((BURST_SECONDS - used[one] + _TOLERANCE) * rate) for one, rate in rates.items())
        return Decision(allowed, remaining, math.ceil((max(used.values()) if allowed else missing) - _TOLERANCE))

    def headers(self, decision: Decision) -> RawHeaders:
        """Return the headers of a response, as of draft-ietf-httpapi-ratelimit-headers-11."""
        return (self._policy, (b"ratelimit", b'"default";r=%d;t=%d' % (decision.remaining, decision.seconds)))


def limiter_of(rate: float | None) -> RateLimiter | None:
    """Return the limiter of a process; None if nothing is limited, so that nothing is counted."""
    return None if rate is None else RateLimiter(rate)
