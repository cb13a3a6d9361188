"""Reads the metrics of the whole installation from PostgreSQL, at each scrape of an API process."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final, NamedTuple

import structlog
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from domain.errors import DatabaseUnavailable
from domain.jobs.stats import MAX_COUNTED, CounterName, Stats
from domain.schedules.last_runs import LastRun
from domain.services import Services
from domain.storage.directory import BackendStatus
from domain.volumes.attachments.service import NodeUsage

#: Maximum time in which a scrape reads PostgreSQL, in seconds; Prometheus gives up the scrape after ten.
TIMEOUT_SECONDS: Final = 3.0

log = structlog.get_logger(__name__)


class Installation(NamedTuple):
    """What one scrape has read."""

    stats: Stats
    workers_alive: int
    usage: NodeUsage
    last_runs: Sequence[LastRun]


class InstallationCollector(Collector):
    """Reads the installation in the event loop of the process, on behalf of the thread that serves a scrape."""

    def __init__(
        self,
        read: Callable[[], Awaitable[Installation]],
        backends: Callable[[], Iterable[BackendStatus]],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """Prepare the collector; ``backends`` returns what the process knows already."""
        self._read = read
        self._backends = backends
        self._loop = loop
        self._errors = 0

    def describe(self) -> Iterable[Metric]:
        """Return the metrics without values."""
        return [*_of_jobs(), *_of_workers(), *_of_nodes(), *_of_schedules(), *_of_backends(), self._scrape_errors()]

    def collect(self) -> Iterable[Metric]:
        """Read the values. If PostgreSQL does not answer in time, return those that need none of it."""
        found = self._read_in_loop()
        if found is not None:
            yield from _of_jobs(found.stats)
            yield from _of_workers(found.workers_alive)
            yield from _of_nodes(found.usage)
            yield from _of_schedules(found.last_runs)
        yield from _of_backends(self._backends())
        yield self._scrape_errors()

    def _read_in_loop(self) -> Installation | None:
        reading = asyncio.run_coroutine_threadsafe(self._read_in_time(), self._loop)
        try:
            return reading.result(2 * TIMEOUT_SECONDS)  # the event loop itself may be busy
        except (DatabaseUnavailable, TimeoutError):
            log.debug("metrics.unavailable")
        except Exception:
            log.exception("metrics.failed")
        reading.cancel()
        self._errors += 1
        return None

    async def _read_in_time(self) -> Installation:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            return await self._read()

    def _scrape_errors(self) -> Metric:
        text = "Scrapes at which PostgreSQL did not answer in time."
        return CounterMetricFamily("cistern_scrape_errors", text, value=self._errors)


def reader(services: Services) -> Callable[[], Awaitable[Installation]]:
    """Return a function that reads the installation; it raises `DatabaseUnavailable`."""

    async def read() -> Installation:
        stats = await services.stats.latest()
        if stats is None:
            raise DatabaseUnavailable
        workers, usage = await services.workers.count_alive(), await services.attachments.usage()
        return Installation(stats, workers, usage, await services.schedules.last_runs())

    return read


_COUNTERS: Final = {
    CounterName.RETRIED: ("cistern_jobs_retried", "Failed attempts that were followed by another attempt."),
    CounterName.RESCUED: ("cistern_jobs_rescued", "Jobs taken from workers that died or lost their lease."),
    CounterName.LOST_MESSAGES: ("cistern_messages_lost", "Messages that Redis lost and that were sent again."),
}


def _of_jobs(stats: Stats | None = None) -> Iterable[Metric]:
    depth = None if stats is None else stats.queue_depth
    oldest = None if stats is None else stats.oldest_due_seconds or 0.0
    yield GaugeMetricFamily("cistern_queue_depth", f"Due queued jobs, counted up to {MAX_COUNTED}.", value=depth)
    yield GaugeMetricFamily("cistern_queue_oldest_seconds", "Seconds since the oldest of them was due.", value=oldest)
    for name, (metric, text) in _COUNTERS.items():
        yield CounterMetricFamily(metric, text, value=None if stats is None else stats.counters[name])


def _of_workers(alive: int | None = None) -> Iterable[Metric]:
    yield GaugeMetricFamily("cistern_workers_alive", "Workers whose heartbeat is younger than a lease.", value=alive)


def _of_nodes(usage: NodeUsage | None = None) -> Iterable[Metric]:
    alive = None if usage is None else usage.nodes_alive
    unattended = None if usage is None else usage.unattended
    yield GaugeMetricFamily("cistern_nodes_alive", "Nodes whose agent is alive.", value=alive)
    yield GaugeMetricFamily(
        "cistern_attachments_unattended", "Attachments on nodes whose agent is not alive.", value=unattended
    )
    by_state = GaugeMetricFamily("cistern_attachments", "Attachments by their state.", labels=("state",))
    for state, count in usage.by_state.items() if usage is not None else ():
        by_state.add_metric((state,), count)
    yield by_state


def _of_schedules(last_runs: Iterable[LastRun] = ()) -> Iterable[Metric]:
    labels = ("project", "schedule")
    succeeded = GaugeMetricFamily(
        "cistern_schedule_last_success_timestamp_seconds", "When a run of the schedule last succeeded.", labels=labels
    )
    failed = GaugeMetricFamily(
        "cistern_schedule_last_run_failed",
        "1 if the last run that has ended was missed or skipped, or its job did not succeed entirely.",
        labels=labels,
    )
    for run in last_runs:
        values = (run.project, run.schedule)
        failed.add_metric(values, int(run.failed))
        if run.succeeded_at is not None:
            succeeded.add_metric(values, run.succeeded_at.timestamp())
    return succeeded, failed


def _of_backends(backends: Iterable[BackendStatus] = ()) -> Iterable[Metric]:
    sizes = {
        "total": GaugeMetricFamily("cistern_backend_size_bytes", "Size of a backend.", labels=("backend",)),
        "used": GaugeMetricFamily("cistern_backend_used_bytes", "Bytes in use on it.", labels=("backend",)),
        "promised": GaugeMetricFamily(
            "cistern_backend_promised_bytes", "Sum of the sizes of its volumes.", labels=("backend",)
        ),
    }
    for backend in backends:
        for column, metric in sizes.items():
            if (value := getattr(backend.row, column)) is not None:
                metric.add_metric((backend.name,), value)
    return sizes.values()
