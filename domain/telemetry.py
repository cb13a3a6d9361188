"""Sends traces to a collector, if `CISTERN_TRACES` says so."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from domain import tracing
from domain.errors import ConfigurationError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

#: The value of `CISTERN_TRACES` if the exporter's own variables name the collector.
FROM_ENVIRONMENT: Final = "true"
_PATH: Final = "/v1/traces"
#: Maximum time in which a process that ends sends its last spans, in seconds.
_CLOSE_SECONDS: Final = 3.0
#: The name of the thread that sends the last spans.
CLOSING: Final = "last-spans"


@asynccontextmanager
async def exporting(traces: str | None, service: str) -> AsyncIterator[None]:
    """Export the traces of this process while the block runs, under the name of a service; nothing if None.

    Raises:
        ConfigurationError: OpenTelemetry is not installed, or refuses one of its own variables.
    """
    if traces is None:
        yield
        return
    try:
        from domain.otel_tracer import OtelTracer  # noqa: PLC0415 (imported only if it is used)

        provider = _open_provider(traces, service)
    except ImportError as error:
        reason = f"{error.name} is missing; `pip install 'cistern[otel]'` installs it"
        raise ConfigurationError(f"CISTERN_TRACES: {reason}") from None
    except ValueError as error:
        raise ConfigurationError(f"CISTERN_TRACES: {' '.join(str(error).split())}") from None
    try:
        with tracing.use(OtelTracer(provider.get_tracer("cistern"))):
            yield
    finally:
        closing = threading.Thread(target=provider.shutdown, name=CLOSING, daemon=True)  # the collector may hang
        closing.start()
        await asyncio.to_thread(closing.join, _CLOSE_SECONDS)


def _open_provider(traces: str, service: str) -> "TracerProvider":
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 (see above)
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    url = traces.rstrip("/").removesuffix(_PATH)
    exporter = OTLPSpanExporter() if traces == FROM_ENVIRONMENT else OTLPSpanExporter(endpoint=url + _PATH)
    resource = Resource.create()
    if str(resource.attributes["service.name"]).startswith("unknown_service"):  # no variable says otherwise
        resource = resource.merge(Resource({"service.name": service}))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider
