"""The tracer of OpenTelemetry."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Final

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from domain.tracing import Attributes

_W3C: Final = TraceContextTextMapPropagator()
#: Keys of a context: the open `send` spans by job kind, and the span that new jobs link to.
_SENDS: Final = contexts.create_key("cistern-sends")
_CAUSE: Final = contexts.create_key("cistern-cause")


class OtelSpan:
    """A span of OpenTelemetry."""

    def __init__(self, span: trace.Span) -> None:
        self._span = span

    def set_attributes(self, attributes: Attributes) -> None:
        """Add attributes."""
        self._span.set_attributes(dict(attributes))

    def fail(self, code: str) -> None:
        """Set the status to an error with this code."""
        self._span.set_attribute("error.type", code)
        self._span.set_status(StatusCode.ERROR, code)


class OtelTracer:
    """Opens spans with a tracer of OpenTelemetry's, whose provider samples and exports them."""

    def __init__(self, tracer: trace.Tracer) -> None:
        self._tracer = tracer

    def serve(self, name: str, headers: Mapping[str, str], attributes: Attributes) -> AbstractContextManager[OtelSpan]:
        """Open the span of a request; its parent is in the request's headers, if that is valid."""
        return self._opened(name, SpanKind.SERVER, attributes, _W3C.extract(headers, Context()))

    @contextmanager
    def sending(self) -> Iterator[None]:
        """End the spans of the jobs that are sent in the block when the block ends: they are accepted only then."""
        sends: dict[str, trace.Span] = {}
        try:
            with self.attached(contexts.set_value(_SENDS, sends)):
                yield
        except BaseException as error:
            for span in sends.values():
                OtelSpan(span).fail(_code(error))
            raise
        finally:
            for span in sends.values():
                span.end()

    def send(self, kind: str, attributes: Attributes) -> str | None:
        """Open the span of a new job, and return the context to store with the job."""
        cause, sends = contexts.get_value(_CAUSE), contexts.get_value(_SENDS)
        links = [Link(cause)] if isinstance(cause, trace.SpanContext) else []
        span = self._tracer.start_span(f"send {kind}", kind=SpanKind.PRODUCER, attributes=attributes, links=links)
        if isinstance(sends, dict):
            sends[kind] = span  # a batch that is sent again makes its jobs anew: only the last one counts
        else:
            span.end()
        stored = [_traceparent(one) for one in (span.get_span_context(), *(link.context for link in links))]
        return " ".join(filter(None, stored)) or None

    def process(self, name: str, context: str | None, attributes: Attributes) -> AbstractContextManager[OtelSpan]:
        """Open the span of an attempt at a job with this context."""
        parent, *linked = (context or "").split() or [""]
        links = [Link(one) for text in linked if (one := _parsed(text)) is not None]
        return self._opened(
            name, SpanKind.CONSUMER, attributes, _W3C.extract({"traceparent": parent}, Context()), links
        )

    @contextmanager
    def inner(self, name: str, attributes: Attributes) -> Iterator[None]:
        """Open a span inside the current one, if there is one. An error of the block is its status."""
        if not trace.get_current_span().get_span_context().is_valid:
            yield
            return
        with self._opened(name, SpanKind.INTERNAL, attributes, None):
            yield

    @contextmanager
    def cause(self, name: str, attributes: Attributes) -> Iterator[None]:
        """Open a span of its own trace. Jobs that are sent in the block have traces of their own, with a link to it."""
        with self._opened(name, SpanKind.INTERNAL, attributes, Context()):
            context = trace.get_current_span().get_span_context()
            with self.attached(contexts.set_value(_CAUSE, context, Context())):
                yield

    def caused_by(self, context: str | None) -> AbstractContextManager[None]:
        """Give the jobs that are sent in the block traces of their own, with a link to the job with this context."""
        own = (context or "").partition(" ")[0]
        return self.attached(contexts.set_value(_CAUSE, _parsed(own), Context()))

    def capture(self) -> Context:
        """Return the context of the current task."""
        return contexts.get_current()

    @contextmanager
    def attached(self, captured: object) -> Iterator[None]:
        """Use a captured context while the block runs."""
        token = contexts.attach(captured)  # type: ignore[arg-type]
        try:
            yield
        finally:
            contexts.detach(token)

    def leave(self) -> None:
        """Leave the trace that the current task has inherited."""
        contexts.attach(Context())

    @contextmanager
    def _opened(
        self, name: str, kind: SpanKind, attributes: Attributes, context: Context | None, links: Sequence[Link] = ()
    ) -> Iterator[OtelSpan]:
        with self._tracer.start_as_current_span(
            name,
            context,
            kind,
            attributes,
            links,
            record_exception=False,  # a message may quote data of users
            set_status_on_exception=False,
        ) as span:
            opened = OtelSpan(span)
            try:
                yield opened
            except BaseException as error:
                opened.fail(_code(error))
                raise


def _code(error: BaseException) -> str:
    """Return the code of an error of ours, or the name of another's class."""
    return str(getattr(error, "code", None) or type(error).__qualname__)


def _traceparent(context: trace.SpanContext) -> str | None:
    """Return the header of a span; None if tracing is switched off in the SDK."""
    carrier: dict[str, str] = {}
    _W3C.inject(carrier, trace.set_span_in_context(trace.NonRecordingSpan(context), Context()))
    return carrier.get("traceparent")


def _parsed(traceparent: str) -> trace.SpanContext | None:
    """Return the span of a header; None if it is not valid."""
    context = trace.get_current_span(_W3C.extract({"traceparent": traceparent}, Context())).get_span_context()
    return context if context.is_valid else None
