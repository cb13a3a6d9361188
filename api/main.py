"""The HTTP process: ``uvicorn api.main:app``. Nothing happens at import; the lifespan opens and closes everything."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from fastapi import FastAPI
from starlette.middleware import Middleware

from api import error_handlers as refusals
from api import health
from api import problem_types as catalogue
from api.middleware import BodyLimit, QuietStartup, RequestContext
from api.openapi import document
from api.shutdown import on_stop
from api.v0.routes import install as install_v0
from api.v0.routes import router as v0_router
from api.v1.fast_path import FastPath
from api.v1.routes import router as v1_router
from domain.logs import configure_logging
from domain.services import Services, open_services
from domain.settings import load_log_settings, load_settings
from domain.tasks import tune_gc

Opening = Callable[[], AbstractAsyncContextManager[Services]]

_DESCRIPTION = """
Volumes on storage backends. Every change is a **job**: it is accepted with 202, never lost, and its effect happens
exactly once. Poll the job at `Location`, or say `Prefer: wait=30`. Refusals are `application/problem+json`
(RFC 9457) with a stable `code`.
"""


@asynccontextmanager
async def from_environment() -> AsyncIterator[Services]:
    """Open the services that the environment describes.

    Raises:
        ConfigurationError: it describes none that can be opened.
        DatabaseUnavailable: PostgreSQL does not answer.
    """
    async with open_services(load_settings()) as services:
        tune_gc()
        yield services


def create_app(opening: Opening = from_environment) -> FastAPI:
    """Build the application; the services are opened when it starts."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with opening() as services, services.watcher.watching():
            app.state.services = services
            with on_stop(services.watcher.release):  # whoever waits for a job gets it as it is
                yield

    app = FastAPI(
        title="Cistern",
        summary="A storage control plane whose every operation is a job that is never lost.",
        description=_DESCRIPTION,
        version="1",
        lifespan=lifespan,
        middleware=[Middleware(QuietStartup), Middleware(RequestContext), Middleware(FastPath), Middleware(BodyLimit)],
        redirect_slashes=False,  # an address with a slash too many is no address, as the document says
        redoc_url=None,
    )
    refusals.install(app)
    install_v0(app)
    for router in (v1_router, v0_router, health.router, catalogue.router):
        app.include_router(router)
    document(app)
    return app


def __getattr__(name: str) -> Any:
    """Make ``app`` when a server asks for it, not at import: before it says anything in a form of its own."""
    if name == "app":
        configure_logging(load_log_settings())
        return create_app()
    raise AttributeError(name)
