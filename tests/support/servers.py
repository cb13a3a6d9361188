"""An application on a real port, in this process."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI


@asynccontextmanager
async def serving(app: FastAPI, *, port: int = 0) -> AsyncIterator[uvicorn.Server]:
    """Serve the application on a port, or a free one, while the block runs."""
    server = uvicorn.Server(uvicorn.Config(app, port=port, access_log=False, log_config=None))
    running = asyncio.create_task(server.serve())
    try:
        async with asyncio.timeout(30):
            while not server.started:
                assert not running.done(), "the server has ended"
                await asyncio.sleep(0.01)
        yield server
    finally:
        server.should_exit = server.force_exit = True
        await running
