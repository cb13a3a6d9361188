"""The tables of a race, each with its explanation."""

# ruff: noqa: INP001 - benchmarks are not a package

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from api_requests import EMPTY
from api_requests import TEXTBOOK as TEXTBOOK_POST
from contestants import Contestant
from end_to_end import CISTERN, TEXTBOOK
from http_load import CONNECTIONS, LoadResult
from pacing import Pacing
from pickup import Pickup
from replicas import SLOTS


@dataclass(frozen=True)
class Table:
    """One table, in Markdown."""

    title: str
    about: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __str__(self) -> str:
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return "\n".join(["## " + self.title, "", self.about, "", *("| " + " | ".join(line) + " |" for line in lines)])


def throughput_table(rates: Mapping[str, Sequence[float]], contestants: Sequence[Contestant]) -> Table:
    """Return the table of all contestants, the fastest first."""
    by_name = {contestant.name: contestant for contestant in contestants}
    ours = median(rates["Cistern"])
    rows = []
    for name in sorted(rates, key=lambda name: -median(rates[name])):
        contestant, rate = by_name[name], median(rates[name])
        rows.append(
            [
                name,
                f"{rate:,.0f}",
                _spread(rates[name]),
                _ratio(ours / rate),
                contestant.settings,
                contestant.keeps,
                contestant.loses,
            ]
        )
    return Table(
        "Throughput of one worker process",
        "A job is one `UPDATE` of one row in PostgreSQL, committed at once; for Cistern it is the expansion of a "
        "volume on null storage (claim, lease, fence, storage call, outcome and effect). All jobs are in the queue "
        "before the worker starts. The rate is computed from the times in the rows, after the first tenth of the "
        "jobs, so start-up time is not measured.",
        ["system", "jobs/s", "rounds", "Cistern / this system", "settings", "keeps", "may lose"],
        rows,
    )


def pickup_table(results: Mapping[str, Pickup]) -> Table:
    """Return the table of all contestants, the lowest latency first."""
    ours = results["Cistern"]
    rows = [
        [
            name,
            f"{one.p50:.1f}",
            f"{one.p99:.1f}",
            f"{one.p50_since_sent:.1f}",
            _ratio(one.p50_since_sent / ours.p50_since_sent),
            f"{one.idle:.1%}",
        ]
        for name, one in sorted(results.items(), key=lambda item: item[1].p99)
    ]
    return Table(
        "Pick-up latency of an idle worker",
        "Single jobs, at irregular intervals of 20 to 120 ms, for a worker that is otherwise idle. p50 and p99: "
        "milliseconds from the response to the enqueueing (for Cistern: to a POST over HTTP, of prepared bytes) to the "
        "start of the work; negative if the work began before the response arrived. "
        '"p50 since request": from sending the request to the start of the work. '
        '"CPU when idle": the share of one core that the worker and its descendants use. Sorted by p99.',
        ["system", "p50", "p99", "p50 since request", "p50 since request / Cistern's", "CPU when idle"],
        rows,
    )


def replicas_table(results: Mapping[str, Mapping[int, Sequence[float]]]) -> Table:
    """Return the table of one worker process and of two."""
    rows = []
    for name, rates in results.items():
        one, two = median(rates[1]), median(rates[2])
        rows.append([name, f"{one:,.0f}", f"{two:,.0f}", _ratio(two / one)])
    return Table(
        "A second worker process",
        "With null storage, PostgreSQL and the CPU are the bottleneck; with slow storage, the storage is "
        f"({SLOTS} jobs at once is the default).",
        ["work", "jobs/s, one worker", "jobs/s, two workers", "ratio"],
        rows,
    )


def api_table(results: Mapping[str, Sequence[LoadResult]]) -> Table:
    """Return the table of all kinds of request."""
    empty, textbook = (median(result.rate for result in results[name]) for name in (EMPTY, TEXTBOOK_POST))
    rows = []
    for name, rounds in results.items():
        rate, p50, p99 = (
            median(values) for values in zip(*((result.rate, result.p50, result.p99) for result in rounds), strict=True)
        )
        server, generator = median(result.server for result in rounds), median(result.generator for result in rounds)
        ratios = [f"{rate / empty:.2f}", _ratio(rate / textbook)]
        rows.append([name, f"{rate:,.0f}", f"{p50:.1f}", f"{p99:.1f}", *ratios, f"{server:.0%}", f"{generator:.0%}"])
    return Table(
        "One API process",
        f"{CONNECTIONS} connections send requests. Each waits for the response before its next request. No worker is "
        "running. All applications run in the same uvicorn, with the same event loop and parser. The load generator "
        'is its own process, sends prepared bytes, and parses only status and length. "API" and "generator" are '
        "their shares of one core: the API process is the bottleneck.",
        [
            "request",
            "per second",
            "p50 ms",
            "p99 ms",
            "ratio to the empty handler",
            "ratio to the textbook",
            "API",
            "generator",
        ],
        rows,
    )


def end_to_end_table(results: Mapping[str, Sequence[float]], pacing: Pacing) -> Table:
    """Return the table of Cistern and the textbook."""
    rows = [
        [
            name,
            f"{median(results[name]):.1f}",
            f"{pacing.end_to_end / median(results[name]):,.0f}",
            _spread(results[name]),
        ]
        for name in (CISTERN, TEXTBOOK)
    ]
    ratio = median(results[TEXTBOOK]) / median(results[CISTERN])
    return Table(
        "End to end",
        f"{pacing.end_to_end:,} requests over {CONNECTIONS} connections, one API process, one worker process (100 jobs "
        f"at once): seconds from the first request to the end of the last job. Textbook / Cistern: {ratio:.2f}.",
        ["system", "seconds", "jobs/s", "rounds"],
        rows,
    )


def _ratio(ratio: float) -> str:
    return f"{ratio:.2f}"


def _spread(values: Sequence[float]) -> str:
    return ", ".join(f"{value:,.0f}" if value >= 100 else f"{value:.1f}" for value in values)  # noqa: PLR2004
