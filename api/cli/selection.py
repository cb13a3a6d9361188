"""Options that select many volumes, and that say how much they grow: for commands that make bulk jobs."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, Final

import typer

from api.cli.session import UsageError, labels_of
from api.cli.sizes import size_of

Backend = Annotated[str | None, typer.Option(help="Only volumes on this backend.")]
Every = Annotated[bool, typer.Option("--all", help="Every volume.")]
MaxConcurrent = Annotated[int | None, typer.Option(min=1, help="Maximum number of volumes at once.")]
To = Annotated[str | None, typer.Option(help="The new size, such as 20GiB.", metavar="SIZE")]
By = Annotated[str | None, typer.Option(help="How much to add, such as 10GiB.", metavar="SIZE")]
Percent = Annotated[float | None, typer.Option(help="How much to add, in percent of the present size.")]
UsageAbove = Annotated[float | None, typer.Option(help="Only volumes of which more than this percentage is used.")]
InodesAbove = Annotated[
    float | None, typer.Option(help="Or only those of whose inodes more than this percentage is used.")
]
CooldownSeconds = Annotated[
    int | None, typer.Option(min=1, help="Not those that have grown within this time.", metavar="SECONDS")
]
UpTo = Annotated[str | None, typer.Option(help="No volume grows beyond it.", metavar="SIZE")]
Autogrow = Annotated[bool, typer.Option("--autogrow", help="Let each volume grow by its own policy.")]

_ALWAYS: Final[Mapping[str, float]] = MappingProxyType({})
SELECTORS: Final = "--label, --backend or --all"


def selection(
    labels: Sequence[str] | None, backend: str | None, *, every: bool, max_concurrent: int | None
) -> dict[str, Any] | None:
    """Return the members that select volumes; None if no option does.

    Raises:
        UsageError: a label is malformed, or --all is combined with a narrower option.
    """
    if every and (labels or backend):
        raise UsageError("--all selects every volume: leave out --label and --backend, or --all")
    if not (every or labels or backend):
        return None
    return given({"labels": labels_of(labels) or None, "backend": backend, "max_concurrent": max_concurrent})


def growth(
    *,
    to: str | None,
    by: str | None,
    percent: float | None,
    up_to: str | None = None,
    autogrow: bool = False,
    when: Mapping[str, float] = _ALWAYS,
) -> dict[str, Any]:
    """Return the members that say how much volumes grow, as they were given; the API says what does not fit.

    ``when`` is what `thresholds` returns.
    """
    sizes = {name: size_of(text) for name, text in (("to", to), ("by", by), ("up_to", up_to)) if text is not None}
    policy = "autogrow" if autogrow else None
    return sizes | given({"percent": percent, "policy": policy}) | dict(when)


def thresholds(usage_above: float | None, inodes_above: float | None, cooldown_seconds: int | None) -> dict[str, Any]:
    """Return the members that say which volumes grow, as they were given."""
    return given({"usage_above": usage_above, "inodes_above": inodes_above, "cooldown_seconds": cooldown_seconds})


def given(members: dict[str, Any]) -> dict[str, Any]:
    """Return the members that have a value."""
    return {name: value for name, value in members.items() if value is not None}
