"""Compare Cistern with its peers, on the same servers and the same work, in one run.

    make bench            or, parts of it: python benchmarks/race.py [throughput|pickup|replicas|api|end-to-end ...]

A full run writes benchmarks/RESULTS.md and results.png. ``--quick``, or a selection of parts, checks that everything
works and writes to build/bench. ``--only saq --only huey`` leaves out the other peers.
"""

# ruff: noqa: INP001, T201 - not a package, and its output is printed

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

from api_requests import api_requests
from arena import MAX_JOBS, Arena, arena
from contestants import Cistern, Contestant
from end_to_end import end_to_end
from machine import machine
from pacing import FULL, QUICK, Pacing
from peer_contestants import PeerInRace, peers_of
from pickup import pickup
from replicas import replicas
from runtimes import PEERS, RUNTIMES
from servers import HERE, private_settings
from tables import Table, api_table, end_to_end_table, pickup_table, replicas_table, throughput_table
from throughput import throughput

from domain.settings import Settings


@dataclass
class Race:
    """One run, and its results so far."""

    arena: Arena
    peers: list[PeerInRace]
    pacing: Pacing
    tables: list[Table] = field(default_factory=list)
    charts: list[dict[str, Any]] = field(default_factory=list)

    def add_table(self, table: Table) -> None:
        """Print a table, and store it for the report."""
        print(f"\n{table}\n", flush=True)
        self.tables.append(table)

    def add_chart(self, title: str, values: dict[str, float], unit: str, *, log: bool = False) -> None:
        """Add a chart to the image."""
        self.charts.append({"title": title, "values": values, "unit": unit, "log": log})

    async def throughput(self) -> None:
        """Measure the throughput of one worker process."""
        contestants: list[Contestant] = [Cistern(self.arena), *self.peers]
        rates = await throughput(contestants, self.pacing)
        self.add_table(throughput_table(rates, contestants))
        values = {name: median(rounds) for name, rounds in rates.items()}
        self.add_chart("Throughput of one worker process", values, "jobs per second")

    async def pickup(self) -> None:
        """Measure the latency of an idle worker."""
        queues = [peer for peer in self.peers if peer.has_queue]
        results = await pickup(self.arena, queues, self.pacing)
        self.add_table(pickup_table(results))
        # A logarithmic axis cannot show a worker that began before the response arrived.
        values = {name: max(result.p99, 0.1) for name, result in results.items()}
        self.add_chart("From the response to the start of the work, idle worker, p99", values, "milliseconds", log=True)

    async def replicas(self) -> None:
        """Measure the gain of a second worker."""
        self.add_table(replicas_table(await replicas(self.arena, self.pacing)))

    async def api(self) -> None:
        """Measure the API."""
        results = await api_requests(self.arena, self.pacing)
        self.add_table(api_table(results))
        values = {name: median(result.rate for result in rounds) for name, rounds in results.items()}
        self.add_chart("One API process", values, "requests per second")

    async def end_to_end(self) -> None:
        """Measure the time from requests to ended jobs."""
        results = await end_to_end(self.arena, self.peers, self.pacing)
        self.add_table(end_to_end_table(results, self.pacing))
        values = {name: self.pacing.end_to_end / median(rounds) for name, rounds in results.items()}
        self.add_chart("End to end", values, "jobs per second")


PARTS: Final[dict[str, Callable[[Race], Awaitable[None]]]] = {
    "throughput": Race.throughput,
    "pickup": Race.pickup,
    "replicas": Race.replicas,
    "api": Race.api,
    "end-to-end": Race.end_to_end,
}


def main() -> None:
    """Run the selected parts, or all of them."""
    parser = argparse.ArgumentParser(description="Compare Cistern with its peers.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"one of {', '.join(PARTS)}; default: all")
    parser.add_argument("--quick", action="store_true", help="one short round of each part")
    modules = sorted({module for runtime in RUNTIMES for module in runtime.modules})
    about_only = f"one of {', '.join(modules)}; may be repeated; default: all"
    parser.add_argument("--only", action="append", default=[], choices=modules, metavar="PEER", help=about_only)
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - PARTS.keys():
        parser.error(f"unknown part: {', '.join(unknown)}; choose from {', '.join(PARTS)}")
    is_full = not (arguments.quick or arguments.parts or arguments.only)
    target = HERE if is_full else HERE.parent / "build" / "bench"
    target.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # unwind, so that the started processes end
    with private_settings(max_jobs=MAX_JOBS) as settings:
        asyncio.run(
            run(settings, arguments.parts or list(PARTS), arguments.only, QUICK if arguments.quick else FULL, target)
        )


async def run(settings: Settings, parts: list[str], only: list[str], pacing: Pacing, target: Path) -> None:
    """Run these parts, and write their results."""
    began, load = time.monotonic(), os.getloadavg()[0]
    async with arena(settings) as race_arena:
        race = Race(race_arena, await peers_of(race_arena, only), pacing)
        for part in parts:
            print(f"\n{part}\n", flush=True)
            await PARTS[part](race)
        if output := race_arena.process_output():
            print(f"Last output of the processes:\n{output}")
        minutes = (time.monotonic() - began) / 60
        about = [*await machine(race_arena), f"- load average of the minute before the run: {load:.1f}"]
        write(race, about, minutes, target)


def write(race: Race, lines: list[str], minutes: float, target: Path) -> None:
    """Write the report and the image."""
    introduction = (HERE / "ABOUT_RESULTS.md").read_text(encoding="utf-8").strip()
    pacing = race.pacing
    text = introduction.format(
        rounds=pacing.rounds, seconds=pacing.seconds, samples=pacing.samples, minutes=minutes, machine="\n".join(lines)
    )
    report = "\n\n".join([text, *map(str, race.tables)]) + "\n"
    (target / "RESULTS.md").write_text(report, encoding="utf-8")
    command = [PEERS.interpreter, HERE / "plot.py", target / "results.png"]
    subprocess.run(command, input=json.dumps(race.charts), text=True, check=True)  # noqa: S603 (our own command)
    print(f"{minutes:.0f} minutes; written to {target.relative_to(HERE.parent)}")


if __name__ == "__main__":
    main()
