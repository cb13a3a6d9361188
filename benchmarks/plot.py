"""Plot the results of a race: reads the charts of `race.py` from standard input, and writes the file in argv[1]."""

# ruff: noqa: INP001 - benchmarks are not a package

import json
import sys
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

OURS, OTHERS = "#0b6e99", "#b8c4cc"


def bars(axes: Any, title: str, values: dict[str, float], unit: str, *, log: bool = False) -> None:
    """Draw one bar per system, the longest on top."""
    order = sorted(values, key=lambda name: values[name])
    drawn = axes.barh(order, [values[name] for name in order], color=[colour(name) for name in order])
    axes.bar_label(drawn, fmt=lambda value: f"{value:,.0f}" if value >= 10 else f"{value:.2g}", padding=3, fontsize=8)  # noqa: PLR2004
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel(unit, fontsize=8)
    axes.tick_params(labelsize=8)
    axes.margins(x=0.15)
    if log:
        axes.set_xscale("log")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def colour(name: str) -> str:
    """Return the colour of a system's bar: Cistern's own, or that of all others."""
    return OURS if name.startswith("Cistern") else OTHERS


def main() -> None:
    """Draw all charts into one image."""
    charts = json.load(sys.stdin)
    if not charts:
        return
    heights = [1.2 + 0.28 * len(chart["values"]) for chart in charts]
    figure, axes = plt.subplots(len(charts), 1, figsize=(9, sum(heights)), height_ratios=heights)
    for axis, chart in zip(axes if len(charts) > 1 else [axes], charts, strict=True):
        bars(axis, chart["title"], chart["values"], chart["unit"], log=chart["log"])
    figure.tight_layout()
    figure.savefig(sys.argv[1], dpi=130)


main()
