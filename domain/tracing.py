"""The interface of a tracer, and the tracer of this process.

Without `CISTERN_TRACES` there is no tracer, and every function here returns at once. `domain.otel_tracer` implements it
with OpenTelemetry, which is imported only there and in `domain.telemetry`.
"""

from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from typing import Any, Final, ParamSpec, Protocol, TypeVar
from uuid import UUID

P = ParamSpec("P")
T = TypeVar("T")
Attributes = Mapping[str, str | int]


class Span(Protocol):
    """An open span: one step of a trace."""

    def set_attributes(self, attributes: Attributes) -> None:
        """Add attributes."""

    def fail(self, code: str) -> None:
        """Set the status to an error with this code."""


class Tracer(Protocol):
    """Opens spans.

    The context of a job is text in its row: the `traceparent` of its `send` span, and perhaps that of a linked span.
    """

    def serve(self, name: str, headers: Mapping[str, str], attributes: Attributes) -> AbstractContextManager[Span]:
        """Open the span of a request; its parent is in the request's headers, if that is valid."""

    def sending(self) -> AbstractContextManager[None]:
        """End the spans of the jobs that are sent in the block when the block ends: they are accepted only then."""

    def send(self, kind: str, attributes: Attributes) -> str | None:
        """Open the span of a new job, and return the context to store with the job."""

    def process(self, name: str, context: str | None, attributes: Attributes) -> AbstractContextManager[Span]:
        """Open the span of an attempt at a job with this context."""

    def inner(self, name: str, attributes: Attributes) -> AbstractContextManager[object]:
        """Open a span inside the current one, if there is one. An error of the block is its status."""

    def cause(self, name: str, attributes: Attributes) -> AbstractContextManager[object]:
        """Open a span of its own trace. Jobs that are sent in the block have traces of their own, with a link to it."""

    def caused_by(self, context: str | None) -> AbstractContextManager[object]:
        """Give the jobs that are sent in the block traces of their own, with a link to the job with this context."""

    def capture(self) -> object:
        """Return the context of the current task."""

    def attached(self, captured: object) -> AbstractContextManager[object]:
        """Use a captured context while the block runs."""

    def leave(self) -> None:
        """Leave the trace that the current task has inherited."""


#: The tracer of this process.
_tracer: Tracer | None = None
_NOTHING: Final = nullcontext()
#: The attributes of a job's spans, by column.
_JOB_COLUMNS: Final = {
    "project_id": "cistern.project.id",
    "volume_id": "cistern.volume.id",
    "snapshot_id": "cistern.snapshot.id",
    "backend": "cistern.storage.backend",
    "parent_id": "cistern.job.parent_id",
    "retry_of": "cistern.job.retry_of",
    "schedule_id": "cistern.schedule.id",
    "worker_id": "messaging.client.id",
}


def tracer() -> Tracer | None:
    """Return the tracer of this process, None if it has none."""
    return _tracer


@contextmanager
def use(new: Tracer) -> Iterator[None]:
    """Use this tracer in this process while the block runs."""
    global _tracer  # noqa: PLW0603 (one for each process, like the log's configuration)
    before, _tracer = _tracer, new
    try:
        yield
    finally:
        _tracer = before


def job_attributes(operation: str, kind: str, job_id: UUID, columns: Mapping[str, Any]) -> dict[str, str | int]:
    """Return the attributes of a span that sends or processes a job; ``operation`` is `send` or `process`."""
    named: dict[str, str | int] = {
        name: str(value) for column, name in _JOB_COLUMNS.items() if (value := columns.get(column)) is not None
    }
    return named | {
        "messaging.system": "cistern",
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
        "messaging.destination.name": kind,
        "messaging.message.id": str(job_id),
    }


def sending() -> AbstractContextManager[Any]:
    """Call `Tracer.sending` if there is a tracer."""
    return _NOTHING if _tracer is None else _tracer.sending()


def sends(method: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Decorate a method that sends a job: it runs in a block of `sending`."""

    async def method_sending(*args: P.args, **kwargs: P.kwargs) -> T:
        with sending():
            return await method(*args, **kwargs)

    @wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T]:
        return method(*args, **kwargs) if _tracer is None else method_sending(*args, **kwargs)

    return call


def cause(name: str, attributes: Attributes) -> AbstractContextManager[Any]:
    """Call `Tracer.cause` if there is a tracer."""
    return _NOTHING if _tracer is None else _tracer.cause(name, attributes)


def caused_by(context: str | None) -> AbstractContextManager[Any]:
    """Call `Tracer.caused_by` if there is a tracer."""
    return _NOTHING if _tracer is None else _tracer.caused_by(context)


def capture() -> object:
    """Call `Tracer.capture` if there is a tracer."""
    return None if _tracer is None else _tracer.capture()


def attached(captured: object) -> AbstractContextManager[Any]:
    """Call `Tracer.attached` if there is a tracer, and was one when ``captured`` was returned."""
    return _NOTHING if _tracer is None or captured is None else _tracer.attached(captured)


def leave() -> None:
    """Call `Tracer.leave` if there is a tracer."""
    if _tracer is not None:
        _tracer.leave()
