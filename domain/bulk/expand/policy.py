"""Which volumes a bulk expansion is for, and how much larger each of them gets."""

from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any, Final, Self

from domain.bulk.selection import DEFAULT_CONCURRENT, Selection, from_request
from domain.bulk.states import ItemCode
from domain.errors import Invalid
from domain.volumes.growth import Growth
from domain.volumes.model import MAX_SIZE

DEFAULT_STEP: Final = 2**20
#: How jobs and clients name `OwnPolicies`.
AUTOGROW: Final = "autogrow"
#: What a volume's own policy may say, and as what.
_VOLUME_POLICIES: Final[dict[str, tuple[type, ...]]] = {
    "usage_above": (int, float),
    "by": (int,),
    "percent": (int, float),
    "up_to": (int,),
}


#: Checked once, and not for each of a million volumes.
_growth: Final = lru_cache(maxsize=64, typed=True)(Growth)


@dataclass(frozen=True)
class GrowthPolicy:
    """How much, in whole steps, up to where, and from which usage on.

    ``to``, ``by``, ``step`` and ``up_to`` are in bytes; ``usage_above`` is in percent of the volume's size.
    """

    to: int | None = None
    by: int | None = None
    percent: float | None = None
    step: int = DEFAULT_STEP
    up_to: int | None = None
    usage_above: float | None = None

    def __post_init__(self) -> None:
        """Refuse what makes no sense, naming the field."""
        Growth(self.to, self.by, self.percent)
        for name in ("step", "up_to"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= MAX_SIZE:
                raise Invalid(f"`{name}` must be more than nothing and at most {MAX_SIZE} bytes.", field=name)
        if self.usage_above is not None and not 0 <= self.usage_above <= 100:  # noqa: PLR2004 (percent)
            raise Invalid("`usage_above` must be between 0 and 100 percent.", field="usage_above")

    @property
    def measures(self) -> bool:
        """Whether it depends on what is in use."""
        return self.usage_above is not None

    def decide(self, size: int, used: int | None, _: Any = None) -> int | ItemCode:
        """The new size of a volume with ``size`` bytes of which ``used`` are allocated, or why it stays as it is."""
        if self.usage_above is not None:
            if used is None:
                return ItemCode.USAGE_UNKNOWN
            if used * 100 <= self.usage_above * size:
                return ItemCode.BELOW_THRESHOLD
        if self.to is not None and self.to <= size:
            return ItemCode.ALREADY_THERE
        limit = min(self.up_to or MAX_SIZE, MAX_SIZE)
        if size >= limit:
            return ItemCode.AT_LIMIT
        return min(self._whole_steps(size), limit)

    def _whole_steps(self, size: int) -> int:
        target = _growth(self.to, self.by, self.percent).requested_size(size)
        return -(-target // self.step) * self.step

    def to_json(self) -> dict[str, Any]:
        """Say it as JSON, for the job."""
        return vars(self)


#: What a `GrowthPolicy` says: either a request does, or each volume's own policy.
GROWTH: Final = tuple(field.name for field in fields(GrowthPolicy))


@dataclass(frozen=True)
class VolumePolicies:
    """Each volume as its own ``autogrow`` says; one that has none stays as it is."""

    @property
    def measures(self) -> bool:
        """Whether it depends on what is in use; a policy of a volume always does."""
        return True

    def decide(self, size: int, used: int | None, own: Any = None) -> int | ItemCode:
        """The new size of a volume whose ``autogrow`` is ``own``, or why it stays as it is."""
        if own is None:
            return ItemCode.NO_POLICY
        policy = _own_policy(own)
        return ItemCode.POLICY_UNUSABLE if policy is None else policy.decide(size, used)

    def to_json(self) -> str:
        """Say it as JSON, for the job. A worker of a version that knew no such policies cannot read it, and fails."""
        return AUTOGROW


Policy = GrowthPolicy | VolumePolicies


def policy_from_json(stored: Any) -> Policy:
    """Read from a job by what its volumes grow."""
    return VolumePolicies() if stored == AUTOGROW else GrowthPolicy(**stored)


def _own_policy(own: Any) -> GrowthPolicy | None:
    """Read what was stored with a volume, perhaps long ago; None if it makes no sense (any more).

    Without a threshold and a limit it would grow without end.
    """
    sound = isinstance(own, dict) and {"usage_above", "up_to"} <= own.keys() <= _VOLUME_POLICIES.keys()
    if not sound or not all(type(value) in _VOLUME_POLICIES[name] for name, value in own.items()):
        return None
    try:
        return GrowthPolicy(**own)
    except Invalid:
        return None


@dataclass(frozen=True)
class BulkExpandRequest:
    """One request to grow many volumes, ``max_concurrent`` of them at once over the whole fleet."""

    policy: Policy
    selection: Selection = field(default_factory=Selection)
    max_concurrent: int = DEFAULT_CONCURRENT

    def to_json(self) -> dict[str, Any]:
        """Say it as JSON, for the job."""
        selection = self.selection.to_json()
        return {"policy": self.policy.to_json(), "selection": selection, "max_concurrent": self.max_concurrent}

    @classmethod
    def from_json(cls, params: dict[str, Any]) -> Self:
        """Read it from a job."""
        selection = Selection.from_json(params["selection"])
        return cls(policy_from_json(params["policy"]), selection, params["max_concurrent"])

    @classmethod
    def from_request(cls, wish: dict[str, Any]) -> Self:
        """Read it in the words in which a client asks for it.

        Raises:
            Invalid: naming the member that makes no sense.
        """
        said = from_request(wish, own={*GROWTH, "policy"})
        growth = {name: said[name] for name in GROWTH if name in said}
        return cls.from_json({"policy": growth} | said)
