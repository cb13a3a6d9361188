"""The ASGI application, ``api.main:app``. Importing it does no work; the lifespan opens and closes the services."""

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from types import FrameType
from typing import Any, Final

import uvicorn
from fastapi import Depends, FastAPI
from fastapi.routing import APIRoute
from starlette.middleware import Middleware
from starlette.types import Receive, Scope, Send

from api import docs_page, error_handlers, health
from api.dashboard import pages, problem_routes, sign_in
from api.dependencies import V0_PATH, V1_PATH, check_form
from api.held_requests import HeldRequests
from api.middleware import Gate
from api.openapi import document
from api.rate_limits import limiter_of
from api.v0 import snapshots as v0_snapshots
from api.v0 import volumes as v0_volumes
from api.v1 import (
    attachments,
    audit,
    backends,
    bulk,
    jobs,
    keys,
    projects,
    schedules,
    snapshots,
    volumes,
    webhooks,
    workers,
)
from api.v1.hot_routes import HotRoutes
from api.v1.job_cache import EndedJobCache
from domain.early_stop import end_at_once
from domain.logs import configure_logging
from domain.prometheus import serving_if_set
from domain.services import Services, open_services
from domain.settings import load_log_settings, load_settings
from domain.tasks import in_background, tune_gc

#: How long an idle connection is kept, in seconds: longer than clients wait between two polls, and than load balancers
#: (60 s) keep theirs, so that it is not the server that closes a connection on which a request is under way.
KEEP_ALIVE_SECONDS: Final = 75

ServicesFactory = Callable[[], AbstractAsyncContextManager[Services]]
_Handler = Callable[[int, FrameType | None], Any]

_DESCRIPTION = """
Volumes on storage backends. Every change is a **job**: it is accepted with 202, never lost, and takes effect exactly
once. Poll the job at `Location`, or send `Prefer: wait=30`. Errors are `application/problem+json` (RFC 9457) with a
stable `code`.
"""


@asynccontextmanager
async def services_from_environment() -> AsyncIterator[Services]:
    """Open the services that the environment configures.

    Raises:
        ConfigurationError: a setting is missing or invalid.
        DatabaseUnavailable: PostgreSQL does not respond.
    """
    async with open_services(load_settings()) as services:
        tune_gc()
        yield services


class _Application(FastAPI):
    """Lets uvicorn keep idle connections, whose default of 5 s is shorter than the interval of many polls.

    An option of `cistern serve` would not reach a server that was started as ``uvicorn api.main:app``.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            config = getattr(getattr(receive, "__self__", None), "config", None)
            if isinstance(config, uvicorn.Config):
                config.timeout_keep_alive = max(config.timeout_keep_alive, KEEP_ALIVE_SECONDS)
        await super().__call__(scope, receive, send)


def create_app(services_factory: ServicesFactory = services_from_environment) -> FastAPI:
    """Build the application; its lifespan opens the services."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as opened:
            with _stop_handlers(lambda _: end_at_once):  # the server would wait for the end of the start-up
                services = await opened.enter_async_context(services_factory())
                await opened.enter_async_context(serving_if_set(services.settings.metrics, services))
            await opened.enter_async_context(services.watcher.watching())
            await opened.enter_async_context(in_background(services.directory.run_forever()))
            await opened.enter_async_context(in_background(services.keys.record_use_forever()))
            app.state.services, app.state.ended_jobs = services, EndedJobCache()
            app.state.held_requests, app.state.rate_limiter = HeldRequests(), limiter_of(services.settings.rate_limit)
            with _on_stop_signal(services.watcher.release):  # requests that wait for a job return its present state
                yield

    app = _Application(
        title="Cistern",
        summary="A storage control plane whose every operation is a job that is never lost.",
        description=_DESCRIPTION,
        version="1",
        lifespan=lifespan,
        middleware=[Middleware(Gate), Middleware(HotRoutes)],
        dependencies=[Depends(check_form)],
        exception_handlers=error_handlers.HANDLERS,
        generate_unique_id_function=_operation_id,
        redirect_slashes=False,  # a path with a trailing slash is not in the OpenAPI document, so it is a 404
        docs_url=None,  # FastAPI's page runs scripts of another origin
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
        # FastAPI would look for providers of OpenTelemetry with each request, which takes longer than the whole gate.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    _include_routers(app)
    document(app)
    return app


def _include_routers(app: FastAPI) -> None:
    of_storage = (bulk, volumes, attachments, snapshots, backends)
    for v1 in (*of_storage, jobs, schedules, workers, projects, keys, audit, webhooks):
        app.include_router(v1.router, prefix=V1_PATH)
    for v0 in (v0_volumes, v0_snapshots):
        app.include_router(v0.router, prefix=V0_PATH)
    for unversioned in (health, problem_routes, docs_page, pages, sign_in):
        app.include_router(unversioned.router)


def _operation_id(route: APIRoute) -> str:
    """Return the name of the route's function: it is public, as client generators name their functions by it."""
    return f"{route.name}_v0" if "v0" in route.tags else route.name


@contextmanager
def _on_stop_signal(callback: Callable[[], None]) -> Iterator[None]:
    """Call ``callback`` in the event loop on SIGTERM or SIGINT, before the server's own handler.

    Requests that wait for a job must return before a graceful shutdown. uvicorn ends the lifespan only after the open
    requests, and a request may wait for 30 seconds. The lifespan therefore comes too late to release them, and the
    signal itself is handled here.
    """
    loop = asyncio.get_running_loop()

    def first_callback(server_handler: _Handler) -> _Handler:
        def handle(number: int, frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(callback)
            server_handler(number, frame)

        return handle

    with _stop_handlers(first_callback):
        yield


@contextmanager
def _stop_handlers(replacement: Callable[[_Handler], _Handler]) -> Iterator[None]:
    """Replace the server's handlers of SIGTERM and SIGINT while the block runs.

    Does nothing where no server handles the signals: in tests, and outside the main thread.
    """
    replaced: dict[int, _Handler] = {}
    if threading.current_thread() is threading.main_thread():
        for stop in (signal.SIGTERM, signal.SIGINT):
            handler = signal.getsignal(stop)
            if callable(handler) and handler is not signal.default_int_handler:
                replaced[stop] = handler
                signal.signal(stop, replacement(handler))
    try:
        yield
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)


def __getattr__(name: str) -> Any:
    """Create ``app`` when a server asks for it, not at import; logging is configured before the first line."""
    if name == "app":
        configure_logging(load_log_settings())
        return create_app()
    raise AttributeError(name)
