"""The span of a request, by OpenTelemetry's conventions for HTTP servers."""

from collections.abc import Iterator
from http import HTTPStatus
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.access import METHODS, row_of
from api.request_headers import read_headers
from domain.tracing import Span, Tracer

#: What the conventions call a method that is not of HTTP.
_OTHER: Final = "_OTHER"
_CONTEXT_HEADERS: Final = (b"traceparent", b"tracestate")


async def traced(tracer: Tracer, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Pass a request on inside its span."""
    route = row_of(scope["path"])
    attributes = dict(_attributes(scope, route))
    given = read_headers(scope)
    headers = {name.decode(): given[name].decode("latin-1") for name in _CONTEXT_HEADERS if name in given}
    method = attributes["http.request.method"]
    name = " ".join(("HTTP" if method == _OTHER else method, *([route] if route else ())))
    with tracer.serve(name, headers, attributes) as span:

        async def send_and_record(message: Message) -> None:
            if message["type"] == "http.response.start":
                _record_status(span, message["status"])
            await send(message)

        await app(scope, receive, send_and_record)


def _attributes(scope: Scope, route: str | None) -> Iterator[tuple[str, str]]:
    """Yield what is known of a request; not its query, and nothing of its client."""
    method = scope["method"]
    yield "http.request.method", method if method in METHODS else _OTHER
    yield "url.scheme", scope.get("scheme", "http")
    yield "url.path", scope["path"]
    yield "network.protocol.version", scope.get("http_version", "1.1")
    if route is not None:
        yield "http.route", route


def _record_status(span: Span, status: int) -> None:
    span.set_attributes({"http.response.status_code": status})
    if (
        status >= HTTPStatus.INTERNAL_SERVER_ERROR
    ):  # by the conventions, an error of the client is no error of the server
        span.fail(str(status))
