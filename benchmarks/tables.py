"""The tables of a race, with what is to be said about each."""

# ruff: noqa: INP001 - benchmarks are no package

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from contestants import Contestant
from end_to_end import CISTERN, TEXTBOOK
from front import NOTHING
from front import TEXTBOOK as TEXTBOOK_POST
from http_load import CONNECTIONS, Answers
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
    """Everybody, the fastest first."""
    by_name = {contestant.name: contestant for contestant in contestants}
    ours = median(rates["Cistern"])
    rows = []
    for name in sorted(rates, key=lambda name: -median(rates[name])):
        who, rate = by_name[name], median(rates[name])
        rows.append(
            [name, f"{rate:,.0f}", _spread(rates[name]), _times(ours / rate), who.settings, who.keeps, who.loses]
        )
    return Table(
        "Throughput of one worker process",
        "A job is one `UPDATE` of one row in PostgreSQL, committed at once; for Cistern it is the expansion of a "
        "volume on storage that does nothing (claim, lease, fence, storage call, outcome and effect). All jobs are "
        "in the queue before the worker starts, and the clock runs from the tenth part of the jobs to the last, by "
        "the times in the rows: a start counts for nobody.",
        ["system", "jobs/s", "rounds", "Cistern is as fast, times", "settings", "keeps", "may lose"],
        rows,
    )


def pickup_table(found: Mapping[str, Pickup]) -> Table:
    """Everybody, the quickest first."""
    ours = found["Cistern"]
    rows = [
        [
            name,
            f"{one.p50:.1f}",
            f"{one.p99:.1f}",
            f"{one.p50_since_sent:.1f}",
            _times(one.p50_since_sent / ours.p50_since_sent),
            f"{one.idle:.1%}",
        ]
        for name, one in sorted(found.items(), key=lambda item: item[1].p99)
    ]
    return Table(
        "How soon an idle worker begins",
        "Jobs come one by one, at irregular intervals of 20 to 120 ms, to a worker that has nothing else to do. "
        "Milliseconds from the moment at which the enqueueing was answered (for Cistern: a POST over HTTP; less than "
        "nothing if the worker was quicker than the answer) to the work's beginning, and from the moment at which it "
        "was asked for; then the share of a core that the idle worker takes, with all that it forked.",
        ["system", "p50", "p99", "p50 since asked", "times Cistern's", "CPU when idle"],
        rows,
    )


def replicas_table(found: Mapping[str, Mapping[int, Sequence[float]]]) -> Table:
    """One worker process and two."""
    rows = []
    for name, rates in found.items():
        one, two = median(rates[1]), median(rates[2])
        rows.append([name, f"{one:,.0f}", f"{two:,.0f}", _times(two / one)])
    return Table(
        "A second worker process",
        "With null storage PostgreSQL and the processors set the pace, with slow storage the storage does "
        f"({SLOTS} jobs at once is the default).",
        ["work", "jobs/s of one", "jobs/s of two", "ratio"],
        rows,
    )


def front_table(found: Mapping[str, Sequence[Answers]]) -> Table:
    """All that was asked for, as it was asked."""
    empty, textbook = (median(one.rate for one in found[name]) for name in (NOTHING, TEXTBOOK_POST))
    rows = []
    for name, rounds in found.items():
        rate, p50, p99 = (
            median(values) for values in zip(*((one.rate, one.p50, one.p99) for one in rounds), strict=True)
        )
        server, generator = median(one.server for one in rounds), median(one.generator for one in rounds)
        ratios = [f"{rate / empty:.2f}", _times(rate / textbook)]
        rows.append([name, f"{rate:,.0f}", f"{p50:.1f}", f"{p99:.1f}", *ratios, f"{server:.0%}", f"{generator:.0%}"])
    return Table(
        "One API process",
        f"{CONNECTIONS} connections, each of which asks as soon as it was answered; no worker is running. All "
        "applications are served by the same uvicorn, with the same event loop and parser. The load "
        "generator is a process of its own that sends finished bytes and looks at status and length only. Its share of "
        "a core stands beside that of the API process, which is the one that has nothing left to give.",
        ["request", "per second", "p50 ms", "p99 ms", "of the empty handler", "of the textbook", "API", "generator"],
        rows,
    )


def end_to_end_table(found: Mapping[str, Sequence[float]], pacing: Pacing) -> Table:
    """Cistern and the textbook."""
    rows = [
        [name, f"{median(found[name]):.1f}", f"{pacing.end_to_end / median(found[name]):,.0f}", _spread(found[name])]
        for name in (CISTERN, TEXTBOOK)
    ]
    ratio = median(found[TEXTBOOK]) / median(found[CISTERN])
    return Table(
        "End to end",
        f"{pacing.end_to_end:,} requests over {CONNECTIONS} connections, one API process, one worker process (100 jobs "
        f"at once): seconds from the first request to the end of the last job. Cistern is as fast, times: {ratio:.2f}.",
        ["system", "seconds", "jobs/s", "rounds"],
        rows,
    )


def _times(ratio: float) -> str:
    return f"{ratio:.2f}"


def _spread(values: Sequence[float]) -> str:
    return ", ".join(f"{value:,.0f}" if value >= 100 else f"{value:.1f}" for value in values)  # noqa: PLR2004
