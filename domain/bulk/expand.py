"""What a bulk expansion is asked for: the policies that decide the sizes of volumes, and the request."""

from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, ClassVar, Final, Self

from domain.bulk.model import ItemCode
from domain.bulk.requests import BulkRequest, Selection, params_from_request
from domain.errors import Invalid
from domain.jobs.kinds import JobKind
from domain.volumes.filesystems.usage import MAX_REPORT_AGE_SECONDS, VolumeUsage
from domain.volumes.model import MAX_SIZE, Growth, rounded_down, rounded_up

DEFAULT_STEP: Final = 2**20
#: The name of `VolumePolicies` in requests and jobs.
AUTOGROW: Final = "autogrow"
#: The members of a volume's ``autogrow`` policy, and their types.
_AUTOGROW_TYPES: Final[dict[str, tuple[type, ...]]] = {
    "usage_above": (int, float),
    "by": (int,),
    "percent": (int, float),
    "up_to": (int,),
    "inodes_above": (int, float),
    "cooldown_seconds": (int,),
}
#: Cached, so that a growth is validated once and not for each of a million volumes.
_growth: Final = lru_cache(maxsize=64, typed=True)(Growth)
#: A year: growths that are further apart are no policy.
MAX_COOLDOWN_SECONDS: Final = 366 * 24 * 3600
_NOTHING_KNOWN: Final = VolumeUsage()
_NEVER_MEASURED: Final = "It has not been measured yet: the expansion itself does that first."
_CANNOT_TELL: Final = "Its backend cannot tell how much of it is in use."
_NOT_REPORTED: Final = "No node has reported yet how much of its file system is in use."
_REPORTED_LATE: Final = (
    f"The node that has it has not reported on its file system for {MAX_REPORT_AGE_SECONDS / 60:g} minutes."
)
_NO_INODES: Final = "It has no file system with a known number of inodes."


@dataclass(frozen=True)
class GrowthPolicy:
    """A growth, rounded up to whole steps, with an optional size limit and optional thresholds of use.

    ``to``, ``by``, ``step`` and ``up_to`` are in bytes; ``usage_above`` is in percent of the volume's size,
    ``inodes_above`` in percent of the inodes of its file system. A volume grows if one of them is exceeded, but not
    within ``cooldown_seconds`` after it has last grown.
    Growth and steps are rounded up to whole blocks. The limit is rounded down: no volume may become larger than it.
    """

    to: int | None = None
    by: int | None = None
    percent: float | None = None
    step: int = DEFAULT_STEP
    up_to: int | None = None
    usage_above: float | None = None
    inodes_above: float | None = None
    cooldown_seconds: int | None = None

    def __post_init__(self) -> None:
        """Reject values out of bounds, naming the field."""
        Growth(self.to, self.by, self.percent)
        for name in ("step", "up_to"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= MAX_SIZE:
                raise Invalid(f"`{name}` must be between 1 and {MAX_SIZE} bytes.", field=name)
        for name in ("usage_above", "inodes_above"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 100:  # noqa: PLR2004 (percent)
                raise Invalid(f"`{name}` must be between 0 and 100 percent.", field=name)
        if self.cooldown_seconds is not None and not 0 < self.cooldown_seconds <= MAX_COOLDOWN_SECONDS:
            message = f"`cooldown_seconds` must be between 1 and {MAX_COOLDOWN_SECONDS}."
            raise Invalid(message, field="cooldown_seconds")

    @property
    def measures(self) -> bool:
        """Whether the new size depends on what is in use of the volume."""
        return self.usage_above is not None or self.inodes_above is not None

    def cools_down(self, _: Any) -> bool:
        """Return whether the new size depends on when the volume has last grown."""
        return self.cooldown_seconds is not None

    def new_size(
        self, size: int, used: int | None, _: Any = None, usage: VolumeUsage = _NOTHING_KNOWN
    ) -> int | ItemCode:
        """Return the new size of a volume with ``size`` bytes, ``used`` of them in use; or why it is unchanged.

        ``used`` is None if that is unknown; a volume whose growth depends on it is then unchanged. Of ``usage`` its
        inodes and its last growth count.
        """
        if (code := self._kept_by_thresholds(size, used, usage)) is not None:
            return code
        if self.to is not None and self.to <= size:
            return ItemCode.ALREADY_LARGE_ENOUGH
        limit = rounded_down(min(self.up_to or MAX_SIZE, MAX_SIZE))
        if size >= limit:
            return ItemCode.AT_LIMIT
        if self._is_cooling_down(usage):
            return ItemCode.COOLING_DOWN
        requested = _growth(self.to, self.by, self.percent).requested_size(size)
        step = rounded_up(self.step)
        in_whole_steps = -(-requested // step) * step
        return min(in_whole_steps, limit)

    def _kept_by_thresholds(self, size: int, used: int | None, usage: VolumeUsage) -> ItemCode | None:
        """Return why no threshold lets the volume grow; None if one does, or there is none."""
        if not self.measures:
            return None
        if self.usage_above is not None and used is not None and used * 100 > self.usage_above * size:
            return None
        if self.inodes_above is not None and (usage.inodes_used or 0) * 100 > self.inodes_above * (usage.inodes or 0):
            return None
        # Without inodes there is only the use that can decide: some file systems have no fixed number of them.
        known = bool(usage.inodes) if self.usage_above is None else used is not None
        return ItemCode.BELOW_THRESHOLD if known else ItemCode.USAGE_UNKNOWN

    def _is_cooling_down(self, usage: VolumeUsage) -> bool:
        if self.cooldown_seconds is None or usage.grown_ago is None:
            return False
        return usage.grown_ago.total_seconds() < self.cooldown_seconds

    def to_json(self) -> dict[str, Any]:
        """Convert to the JSON stored in a job. Workers of versions without a member can read it if it is not used."""
        return {name: value for name, value in vars(self).items() if value is not None}


#: The members of a request that make up its `GrowthPolicy`.
POLICY_FIELDS: Final = tuple(field.name for field in fields(GrowthPolicy))


@dataclass(frozen=True)
class VolumePolicies:
    """The policy that expands each volume by its own ``autogrow``; a volume without one is unchanged."""

    #: The new size always depends on what is in use of the volume, since every ``autogrow`` has a threshold.
    measures: ClassVar = True

    def cools_down(self, autogrow: Any) -> bool:
        """Return whether the new size depends on when the volume has last grown."""
        return isinstance(autogrow, dict) and autogrow.get("cooldown_seconds") is not None

    def new_size(
        self, size: int, used: int | None, autogrow: Any = None, usage: VolumeUsage = _NOTHING_KNOWN
    ) -> int | ItemCode:
        """Return the new size of a volume by its ``autogrow``, or why it is unchanged."""
        if autogrow is None:
            return ItemCode.NO_POLICY
        policy = _volume_policy(autogrow)
        return ItemCode.POLICY_UNUSABLE if policy is None else policy.new_size(size, used, None, usage)

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


def why_unknown(usage: VolumeUsage, filesystem: str | None) -> str:
    """Return why it is unknown what is in use of a volume, for the code ``usage-unknown``."""
    if usage.used is not None:
        return _NO_INODES
    if filesystem is None:
        return _NEVER_MEASURED if usage.is_new else _CANNOT_TELL
    return _NOT_REPORTED if usage.is_new else _REPORTED_LATE


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
