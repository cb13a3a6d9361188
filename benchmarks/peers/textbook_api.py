"""An endpoint as textbooks have it, and one that does nothing at all; served by the Python that Cistern's API has."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from arq import create_pool
from arq.connections import RedisSettings
from fastapi import FastAPI
from pydantic import BaseModel

from peers.textbook import Work, open_sessions


class WorkIn(BaseModel):
    """What is asked for."""

    name: str
    size: int


class WorkOut(WorkIn):
    """What is answered."""

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
async def add(wanted: WorkIn) -> WorkOut:
    """Insert a row, commit, and then enqueue the job: who dies in between has lost it."""
    async with app.state.sessions() as session:
        work = Work(name=wanted.name, size=wanted.size)
        session.add(work)
        await session.commit()
    await app.state.queue.enqueue_job("update", work.id)
    return WorkOut(id=work.id, name=wanted.name, size=wanted.size)
