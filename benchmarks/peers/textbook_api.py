"""The textbook's endpoint, and an empty one; both run in the same Python as Cistern's API."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from arq import create_pool
from arq.connections import RedisSettings
from fastapi import FastAPI
from pydantic import BaseModel

from peers.textbook import Work, open_sessions


class WorkIn(BaseModel):
    """The request body."""

    name: str
    size: int


class WorkOut(WorkIn):
    """The response body."""

    id: int


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Connect to both servers."""
    app.state.sessions = open_sessions()
    app.state.queue = await create_pool(RedisSettings.from_dsn(os.environ["PEERS_REDIS_URL"]))
    yield


app = FastAPI(lifespan=lifespan)


@app.get("/nothing")
async def nothing() -> dict[str, str]:
    """Do nothing."""
    return {}


@app.post("/work", status_code=202)
async def add(body: WorkIn) -> WorkOut:
    """Insert a row, commit, then enqueue the job, which is lost if the process dies in between."""
    async with app.state.sessions() as session:
        work = Work(name=body.name, size=body.size)
        session.add(work)
        await session.commit()
    await app.state.queue.enqueue_job("update", work.id)
    return WorkOut(id=work.id, name=body.name, size=body.size)
