"""The spans of jobs, by OpenTelemetry's conventions for messaging: one is sent, and each attempt processes it."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Final

from domain import tracing
from domain.jobs.attempt import ClaimedJob, Failed, FenceBehind, Outcome, RetryIn

_NO_SPAN: Final = nullcontext[Callable[[Outcome], None]](lambda _: None)


def processing(job: ClaimedJob) -> AbstractContextManager[Callable[[Outcome], None]]:
    """Open the span of an attempt. Yields a function, which the block calls with the outcome."""
    tracer = tracing.tracer()
    return _NO_SPAN if tracer is None else _processing(tracer, job)


@contextmanager
def _processing(tracer: tracing.Tracer, job: ClaimedJob) -> Iterator[Callable[[Outcome], None]]:
    attributes = tracing.job_attributes("process", job.kind, job.id, job._asdict()) | {
        "cistern.job.attempt": job.attempt,
        "cistern.job.epoch": job.epoch,
        "cistern.job.queue_ms": job.queue_ms,
    }
    with tracer.process(f"process {job.kind}", job.traceparent, attributes) as span:

        def end(outcome: Outcome) -> None:
            span.set_attributes({"cistern.job.outcome": outcome.name})
            if isinstance(outcome, Failed | RetryIn | FenceBehind):
                span.fail(outcome.error["code"])

        yield end
