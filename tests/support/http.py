"""An HTTP client of an application in the same process, without a socket."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import httpx
from fastapi import FastAPI

from tests.support import keys


@asynccontextmanager
async def client_of(app: FastAPI, headers: Mapping[str, str] = keys.BEARER) -> AsyncIterator[httpx.AsyncClient]:
    """Run the lifespan of the app, and yield a client that sends the key of the tests, or other headers."""
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://localhost", headers=headers, timeout=60
        ) as client:
            yield client
