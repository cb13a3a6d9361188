"""Cistern beside its peers, all on the same servers and on the same work, in one run.

    make bench            or, parts of it: python benchmarks/race.py [throughput|pickup|replicas|front|end-to-end ...]

A whole run writes benchmarks/RESULTS.md and results.png; ``--quick``, or a part alone, only looks whether all works and
writes to build/bench. ``--only saq --only huey`` leaves the other peers out.
"""

# ruff: noqa: INP001, T201 - no package, and it is there to print

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final

from arena import HERE, MAX_JOBS, Arena, arena
from contestants import VENVS, Cistern, Contestant, PeerInRace, peers_of
from end_to_end import end_to_end
from front import front
from machine import machine
from pacing import QUICK, WHOLE, Pacing
from pickup import pickup
from replicas import replicas
from stage import private_settings
from tables import Table, end_to_end_table, front_table, pickup_table, replicas_table, throughput_table
from throughput import throughput

from domain.settings import Settings


@dataclass
class Race:
    """One run, and what it has found so far."""

    arena: Arena
    peers: list[PeerInRace]
    pacing: Pacing
    tables: list[Table] = field(default_factory=list)
    charts: list[dict[str, Any]] = field(default_factory=list)

    def found(self, table: Table) -> None:
        """Print a table, and keep it."""
        print(f"\n{table}\n", flush=True)
        self.tables.append(table)

    def drawn(self, title: str, values: dict[str, float], unit: str, *, log: bool = False) -> None:
        """Have something in the picture."""
        self.charts.append({"title": title, "values": values, "unit": unit, "log": log})

    async def throughput(self) -> None:
        """Jobs per second."""
        everybody: list[Contestant] = [Cistern(self.arena), *self.peers]
        rates = await throughput(everybody, self.pacing)
        self.found(throughput_table(rates, everybody))
        values = {name: median(rounds) for name, rounds in rates.items()}
        self.drawn("Throughput of one worker process", values, "jobs per second")

    async def pickup(self) -> None:
        """The latency of an idle worker."""
        found = await pickup(self.arena, self.peers, self.pacing)
        self.found(pickup_table(found))
        # An axis of tenfold steps has no place for a worker that was quicker than the answer.
        values = {name: max(one.p99, 0.1) for name, one in found.items()}
        self.drawn("From the answer to the work's beginning, idle worker, p99", values, "milliseconds", log=True)

    async def replicas(self) -> None:
        """A second worker."""
        self.found(replicas_table(await replicas(self.arena, self.pacing)))

    async def front(self) -> None:
        """The API."""
        found = await front(self.arena, self.pacing)
        self.found(front_table(found))
        values = {name: median(one.rate for one in rounds) for name, rounds in found.items()}
        self.drawn("One API process", values, "requests per second")

    async def end_to_end(self) -> None:
        """Requests to outcomes."""
        found = await end_to_end(self.arena, self.peers, self.pacing)
        self.found(end_to_end_table(found, self.pacing))
        values = {name: self.pacing.end_to_end / median(rounds) for name, rounds in found.items()}
        self.drawn("End to end", values, "jobs per second")


PARTS: Final[dict[str, Callable[[Race], Awaitable[None]]]] = {
    "throughput": Race.throughput,
    "pickup": Race.pickup,
    "replicas": Race.replicas,
    "front": Race.front,
    "end-to-end": Race.end_to_end,
}


def main() -> None:
    """Run what was asked for, or everything."""
    parser = argparse.ArgumentParser(description="Cistern beside its peers.")
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all of them, if none is named"
    )
    parser.add_argument("--quick", action="store_true", help="short, and only once")
    parser.add_argument("--only", action="append", metavar="PEER", help="the name of a file in peers/; may be repeated")
    asked = parser.parse_args()
    if unknown := set(asked.parts) - PARTS.keys():
        parser.error(f"no such part: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    whole = not (asked.quick or asked.parts or asked.only)
    target = HERE if whole else HERE.parent / "build" / "bench"
    target.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started ends with us
    with private_settings(max_jobs=MAX_JOBS) as settings:
        asyncio.run(run(settings, asked.parts or list(PARTS), asked.only, QUICK if asked.quick else WHOLE, target))


async def run(settings: Settings, parts: list[str], only: list[str] | None, pacing: Pacing, target: Path) -> None:
    """Run these parts, and write down what they found."""
    began, load = time.monotonic(), os.getloadavg()[0]
    async with arena(settings) as place:
        peers = [peer for peer in await peers_of(place) if not only or peer.module in only]
        race = Race(place, peers, pacing)
        for part in parts:
            print(f"\n{part}\n", flush=True)
            await PARTS[part](race)
        if words := place.spoken():
            print(f"What the processes said last:\n{words}")
        minutes = (time.monotonic() - began) / 60
        about = [*await machine(place), f"- {load:.1f} processes at work in the minute before the run (load average)"]
        write(race, about, minutes, target)


def write(race: Race, lines: list[str], minutes: float, target: Path) -> None:
    """Write the report and the picture."""
    about = (HERE / "ABOUT_RESULTS.md").read_text(encoding="utf-8").strip()
    pace = race.pacing
    said = about.format(
        rounds=pace.rounds, seconds=pace.seconds, samples=pace.samples, minutes=minutes, machine="\n".join(lines)
    )
    report = "\n\n".join([said, *map(str, race.tables)]) + "\n"
    (target / "RESULTS.md").write_text(report, encoding="utf-8")
    command = [VENVS["peers"] / "bin" / "python", HERE / "plot.py", target / "results.png"]
    subprocess.run(command, input=json.dumps(race.charts), text=True, check=True)  # noqa: S603 (our own command)
    print(f"{minutes:.0f} minutes; written to {target.relative_to(HERE.parent)}")


if __name__ == "__main__":
    main()
