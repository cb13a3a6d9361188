"""An application on a real port, in this process."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI

#: Streams that nobody has closed are cut after it.
_GRACE_SECONDS = 5


@asynccontextmanager
async def serving(app: FastAPI, *, port: int = 0) -> AsyncIterator[uvicorn.Server]:
    """Serve the application on a port, or a free one, while the block runs.

    Requests that are still at work then are waited for: one that is left holds a connection of the services, which
    stays open when they are closed, and uvloop waits for it for ever.
    """
    config = uvicorn.Config(app, port=port, access_log=False, log_config=None, timeout_graceful_shutdown=_GRACE_SECONDS)
    server = uvicorn.Server(config)
    running = asyncio.create_task(server.serve())
    try:
        async with asyncio.timeout(30):
            while not server.started:
                assert not running.done(), "the server has ended"
                await asyncio.sleep(0.01)
        yield server
    finally:
        server.should_exit = True
        await running
