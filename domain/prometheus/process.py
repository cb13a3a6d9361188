"""Records the metrics of a process, in a registry of its own."""

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import ClassVar, Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)

from domain.metrics import Recorder
from domain.projects.model import LIMITS

#: Bounds of the histograms in seconds. A job may wait or run from a few milliseconds to hours.
_JOB_BUCKETS: Final = (0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 1800, 7200)
_STORAGE_BUCKETS: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 30, 120, 600)
_HTTP_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class PrometheusRecorder(Recorder):
    """Counts in memory; a scrape reads the registry.

    The library looks up the labels of each call under a lock; a cache saves the look-up.
    """

    is_on: ClassVar = True

    def __init__(self, registry: CollectorRegistry) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call] # of the library: a second time series for each counter
        ProcessCollector(registry=registry)

        def counter(name: str, text: str, *labels: str) -> Callable[..., Counter]:
            return cache(Counter(name, text, labels, registry=registry).labels)

        def histogram(name: str, text: str, buckets: Iterable[float], *labels: str) -> Callable[..., Histogram]:
            return cache(Histogram(name, text, labels, registry=registry, buckets=tuple(buckets)).labels)

        self._registry = registry
        self._accepted = counter("cistern_jobs_accepted", "Jobs accepted by this process.", "kind")
        self._finished = counter(
            "cistern_jobs_finished", "Jobs ended by this process, by their last status.", "kind", "outcome"
        )
        self._waits = histogram(
            "cistern_job_wait_seconds", "Time from when a job was due until its claim.", _JOB_BUCKETS, "kind"
        )
        self._runs = histogram(
            "cistern_job_run_seconds", "Time from a claim to the outcome of the attempt.", _JOB_BUCKETS, "kind"
        )
        self._items = counter("cistern_bulk_items", "Items of bulk jobs finished by this process.", "outcome", "code")
        self._quotas = counter("cistern_quota_refusals", "Refusals by a limit of a project.", "quota")
        for limit in LIMITS:  # all start at 0: an alert would not notice one that starts with its first refusal
            self._quotas(limit)
        self._storage = counter(
            "cistern_storage_operations", "Operations on storage, by their result.", "operation", "result"
        )
        self._storage_seconds = histogram(
            "cistern_storage_operation_seconds", "Duration of an operation on storage.", _STORAGE_BUCKETS, "operation"
        )
        self._freezes, self._growth_failures = _of_file_systems(registry)
        self._requests = counter("cistern_http_requests", "Requests answered.", "method", "route", "status")
        self._request_seconds = histogram(
            "cistern_http_request_seconds",
            "Time until the response to a request started.",
            _HTTP_BUCKETS,
            *("method", "route"),
        )

    def measure_lanes(self, running: Callable[[], int]) -> None:
        """Add the gauge; only a worker has it."""
        gauge = Gauge("cistern_lanes_running", "Lanes of bulk jobs that this worker runs.", registry=self._registry)
        gauge.set_function(running)

    def jobs_accepted(self, kind: str, count: int = 1) -> None:
        """Add their number to the counter."""
        self._accepted(kind).inc(count)

    def jobs_claimed(self, waits: Iterable[tuple[str, float]]) -> None:
        """Add the waits to the histogram."""
        for kind, seconds in waits:
            self._waits(kind).observe(seconds)

    def attempt_settled(self, kind: str, seconds: float) -> None:
        """Add the duration to the histogram."""
        self._runs(kind).observe(seconds)

    def jobs_finished(self, kind: str, outcome: str, count: int = 1) -> None:
        """Add their number to the counter."""
        self._finished(kind, outcome).inc(count)

    def items_finished(self, counts: Mapping[tuple[str, str], int]) -> None:
        """Add their number to the counter."""
        for (outcome, code), count in counts.items():
            self._items(outcome, code).inc(count)

    def quota_refused(self, quota: str) -> None:
        """Add one to the counter."""
        self._quotas(quota).inc()

    def storage_used(self, operation: str, result: str, seconds: float) -> None:
        """Add one to the counter, and the duration to the histogram."""
        self._storage(operation, result).inc()
        self._storage_seconds(operation).observe(seconds)

    def freeze_ended(self, result: str) -> None:
        """Add one to the counter."""
        self._freezes(result).inc()

    def growth_failed(self) -> None:
        """Add one to the counter."""
        self._growth_failures.inc()

    def request_answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Add one to the counter, and the duration to the histogram."""
        self._requests(method, route, status).inc()
        self._request_seconds(method, route).observe(seconds)


def _of_file_systems(registry: CollectorRegistry) -> tuple[Callable[..., Counter], Counter]:
    """Return the counters of freezes by their result, and of failed growths; both start at 0."""
    freezes = Counter("cistern_freezes", "Freezes for snapshots, by their result.", ("result",), registry=registry)
    for result in ("held", "lost"):
        freezes.labels(result)
    name, text = "cistern_filesystem_growth_failures", "Growths of file systems that failed."
    return cache(freezes.labels), Counter(name, text, registry=registry)
