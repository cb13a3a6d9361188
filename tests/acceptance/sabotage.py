"""A worker that strikes itself down, or Redis, at one arrow of a job's life; or without its guards; or an old one.

``python -m tests.acceptance.sabotage`` reads ``SABOTAGE_ARROW`` (where), ``SABOTAGE_BLOW`` (``kill`` or ``flush``),
``SABOTAGE_WITHOUT`` (which guards to take out: ``clock``, ``fence``, both with a comma) and ``SABOTAGE_KIND`` (a kind
of job that this worker is too old to know; it says UNANSWERED whenever a ring comes to nothing).
"""

import os
import signal
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import redis

import domain.services
import domain.storage.file.tree
from domain.bulk.chunks import Chunks
from domain.bulk.service import BulkService
from domain.jobs.engine import Claim, JobEngine
from domain.jobs.model import Dispatch
from domain.jobs.store.parents import ParentRepository
from domain.jobs.transport.job_queue import JobQueue
from domain.services import Handler
from domain.storage.context import Grant
from domain.storage.file.fence import FenceRecord
from domain.volumes.repository import VolumeRepository
from worker.main import main
from worker.runner import Runner

#: Where it strikes: (class, method, whether before the method or after it).
ARROWS: dict[str, tuple[type, str, str]] = {
    "before the claim": (Runner, "claim", "before"),
    "after the claim": (JobEngine, "claim", "after"),
    "before publishing": (FenceRecord, "write", "before"),
    "after publishing": (Grant, "on_published", "before"),
    "before the commit": (JobEngine, "_conclude", "after"),
    "after the commit": (JobQueue, "announce", "before"),
}

#: The same for a bulk job. "if so": after the method, when it has answered yes.
BULK_ARROWS: dict[str, tuple[type, str, str]] = {
    "planned": (BulkService, "plan", "after"),
    "handing over, before the commit": (BulkService, "delegate", "after"),
    "taking, before the commit": (VolumeRepository, "take_many", "after"),
    "volumes taken": (Chunks, "take_more", "after"),
    "in the middle of the storage work": (Grant, "on_published", "before"),
    "storage work done": (Chunks, "record", "before"),
    "recording, before the commit": (VolumeRepository, "let_go", "after"),
    "chunk recorded": (Chunks, "record", "after"),
    "the parent's end, before the commit": (ParentRepository, "tally", "if so"),
}

#: And for one that measures its volumes, in between claiming and taking.
MEASURING_ARROWS: dict[str, tuple[type, str, str]] = {
    "chunk claimed": (Chunks, "claim", "after"),
    "measured": (Chunks, "measure", "after"),
    "measured volumes taken": (Chunks, "take", "after"),
}


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def flush() -> None:
    client = redis.Redis.from_url(os.environ["CISTERN_REDIS_URL"])
    client.flushall()
    client.close()


def arm(arrow: str, blow: Callable[[], None]) -> None:
    owner, name, moment = (ARROWS | BULK_ARROWS | MEASURING_ARROWS)[arrow]
    original = getattr(owner, name)

    if name in ("write", "on_published"):

        @wraps(original)
        def struck(*args: Any, **kwargs: Any) -> Any:
            blow()
            return original(*args, **kwargs)

        setattr(owner, name, struck)
        return

    @wraps(original)
    async def struck_async(*args: Any, **kwargs: Any) -> Any:
        if moment == "before":
            blow()
        result = await original(*args, **kwargs)
        if moment == "after" or (moment == "if so" and result):
            blow()
        return result

    setattr(owner, name, struck_async)


def disarm(guard: str) -> None:
    if guard == "clock":
        setattr(Grant, "check", lambda _: None)  # noqa: B010
    if guard == "fence":
        setattr(domain.storage.file.tree, "refuse_stale", lambda *_: None)  # noqa: B010


def grow_old(kind: str) -> None:
    handlers, claim = domain.services.handlers, Runner.claim

    def known(*rooms: Any) -> dict[str, Handler]:
        table = handlers(*rooms)
        del table[kind]
        return table

    async def told(self: Runner, dispatch: Dispatch) -> Claim | None:
        claimed = await claim(self, dispatch)
        if claimed is None:
            sys.stderr.write("UNANSWERED\n")
            sys.stderr.flush()
        return claimed

    setattr(domain.services, "handlers", known)  # noqa: B010
    setattr(Runner, "claim", told)  # noqa: B010


if __name__ == "__main__":
    if "SABOTAGE_KIND" in os.environ:
        grow_old(os.environ["SABOTAGE_KIND"])
    if "SABOTAGE_ARROW" in os.environ:
        arm(os.environ["SABOTAGE_ARROW"], {"kill": kill, "flush": flush}[os.environ["SABOTAGE_BLOW"]])
    for guard in filter(None, os.environ.get("SABOTAGE_WITHOUT", "").split(",")):
        disarm(guard)
    main()
