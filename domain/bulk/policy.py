"""The request for a bulk expansion, and the growth policies that decide the new size of each volume."""

from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, Final, Self

from domain.bulk.model import ItemCode
from domain.bulk.requests import BulkRequest, Selection, params_from_request
from domain.errors import Invalid
from domain.jobs.kinds import JobKind
from domain.volumes.growth import Growth
from domain.volumes.model import MAX_SIZE

DEFAULT_STEP: Final = 2**20
#: The name of `VolumePolicies` in requests and jobs.
AUTOGROW: Final = "autogrow"
#: The members of a volume's ``autogrow`` policy, and their types.
_AUTOGROW_TYPES: Final[dict[str, tuple[type, ...]]] = {
    "usage_above": (int, float),
    "by": (int,),
    "percent": (int, float),
    "up_to": (int,),
}


#: Cached, so that a growth is validated once and not for each of a million volumes.
_growth: Final = lru_cache(maxsize=64, typed=True)(Growth)


@dataclass(frozen=True)
class GrowthPolicy:
    """A growth, rounded up to whole steps, with an optional size limit and an optional usage threshold.

    ``to``, ``by``, ``step`` and ``up_to`` are in bytes; ``usage_above`` is in percent of the volume's size.
    """

    to: int | None = None
    by: int | None = None
    percent: float | None = None
    step: int = DEFAULT_STEP
    up_to: int | None = None
    usage_above: float | None = None

    def __post_init__(self) -> None:
        """Reject values out of bounds, naming the field."""
        Growth(self.to, self.by, self.percent)
        for name in ("step", "up_to"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= MAX_SIZE:
                raise Invalid(f"`{name}` must be between 1 and {MAX_SIZE} bytes.", field=name)
        if self.usage_above is not None and not 0 <= self.usage_above <= 100:  # noqa: PLR2004 (percent)
            raise Invalid("`usage_above` must be between 0 and 100 percent.", field="usage_above")

    @property
    def measures(self) -> bool:
        """Whether the new size depends on the volume's usage."""
        return self.usage_above is not None

    def new_size(self, size: int, used: int | None, _: Any = None) -> int | ItemCode:
        """Return the new size of a volume with ``size`` bytes, ``used`` of them allocated; or why it is unchanged."""
        if self.usage_above is not None:
            if used is None:
                return ItemCode.USAGE_UNKNOWN
            if used * 100 <= self.usage_above * size:
                return ItemCode.BELOW_THRESHOLD
        if self.to is not None and self.to <= size:
            return ItemCode.ALREADY_LARGE_ENOUGH
        limit = min(self.up_to or MAX_SIZE, MAX_SIZE)
        if size >= limit:
            return ItemCode.AT_LIMIT
        return min(self._in_whole_steps(size), limit)

    def _in_whole_steps(self, size: int) -> int:
        target = _growth(self.to, self.by, self.percent).requested_size(size)
        return -(-target // self.step) * self.step

    def to_json(self) -> dict[str, Any]:
        """Convert to the JSON stored in a job."""
        return vars(self)


#: The members of a request that make up its `GrowthPolicy`.
POLICY_FIELDS: Final = tuple(field.name for field in fields(GrowthPolicy))


@dataclass(frozen=True)
class VolumePolicies:
    """The policy that expands each volume by its own ``autogrow``; a volume without one is unchanged."""

    @property
    def measures(self) -> bool:
        """Whether the new size depends on the volume's usage: always, since every ``autogrow`` has a threshold."""
        return True

    def new_size(self, size: int, used: int | None, autogrow: Any = None) -> int | ItemCode:
        """Return the new size of a volume by its ``autogrow``, or why it is unchanged."""
        if autogrow is None:
            return ItemCode.NO_POLICY
        policy = _volume_policy(autogrow)
        return ItemCode.POLICY_UNUSABLE if policy is None else policy.new_size(size, used)

    def to_json(self) -> str:
        """Convert to the JSON stored in a job. Workers of versions without such policies cannot read it, and fail."""
        return AUTOGROW


Policy = GrowthPolicy | VolumePolicies


def policy_from_json(policy: Any) -> Policy:
    """Build the policy from the JSON stored in a job."""
    return VolumePolicies() if policy == AUTOGROW else GrowthPolicy(**policy)


def _volume_policy(autogrow: Any) -> GrowthPolicy | None:
    """Build the policy from a volume's ``autogrow``; None if it is invalid, since an older version may have stored it.

    A threshold and a limit are required: without them the volume would grow at every run, without end.
    """
    valid = isinstance(autogrow, dict) and {"usage_above", "up_to"} <= autogrow.keys() <= _AUTOGROW_TYPES.keys()
    if not valid or not all(type(value) in _AUTOGROW_TYPES[name] for name, value in autogrow.items()):
        return None
    try:
        return GrowthPolicy(**autogrow)
    except Invalid:
        return None


@dataclass(frozen=True)
class BulkExpandRequest(BulkRequest):
    """A request to expand many volumes by a policy. On a retry, the sizes stored in the ledger stay binding."""

    kind = JobKind.BULK_EXPAND

    policy: Policy

    def to_json(self) -> dict[str, Any]:
        """Convert to the params of the job."""
        return super().to_json() | {"policy": self.policy.to_json()}

    @classmethod
    def from_json(cls, params: dict[str, Any]) -> Self:
        """Build from the params of a job."""
        policy, selection = policy_from_json(params["policy"]), Selection.from_json(params["selection"])
        return cls(policy, selection=selection, max_concurrent=params["max_concurrent"])

    @classmethod
    def from_request(cls, request: dict[str, Any]) -> Self:
        """Build from a request in the form of the HTTP API."""
        params = params_from_request(request, own={*POLICY_FIELDS, "policy"})
        policy = {name: params[name] for name in POLICY_FIELDS if name in params}
        return cls.from_json({"policy": policy} | params)
