"""The ASGI application, ``api.main:app``. Importing it does no work; the lifespan opens and closes the services."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from fastapi import FastAPI
from starlette.middleware import Middleware

from api import error_handlers, health, problem_types
from api.middleware import Gate
from api.openapi import document
from api.shutdown import on_stop_signal
from api.v0.routes import install as install_v0
from api.v0.routes import router as v0_router
from api.v1.hot_routes import HotRoutes
from api.v1.job_cache import EndedJobCache
from api.v1.routes import router as v1_router
from domain.logs import configure_logging
from domain.services import Services, open_services
from domain.settings import load_log_settings, load_settings
from domain.tasks import tune_gc

ServicesFactory = Callable[[], AbstractAsyncContextManager[Services]]

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


def create_app(services_factory: ServicesFactory = services_from_environment) -> FastAPI:
    """Build the application; its lifespan opens the services."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with services_factory() as services, services.watcher.watching():
            app.state.services, app.state.ended_jobs = services, EndedJobCache()
            with on_stop_signal(services.watcher.release):  # requests that wait for a job return its present state
                yield

    app = FastAPI(
        title="Cistern",
        summary="A storage control plane whose every operation is a job that is never lost.",
        description=_DESCRIPTION,
        version="1",
        lifespan=lifespan,
        middleware=[Middleware(Gate), Middleware(HotRoutes)],
        redirect_slashes=False,  # a path with a trailing slash is not in the OpenAPI document, so it is a 404
        redoc_url=None,
    )
    error_handlers.install(app)
    install_v0(app)
    for router in (v1_router, v0_router, health.router, problem_types.router):
        app.include_router(router)
    document(app)
    return app


def __getattr__(name: str) -> Any:
    """Create ``app`` when a server asks for it, not at import; logging is configured before the first line."""
    if name == "app":
        configure_logging(load_log_settings())
        return create_app()
    raise AttributeError(name)
