"""A worker with a fault at one transition of a job, without some of its guards, or of an older version.

``python -m tests.acceptance.sabotage`` reads these variables from the environment:

- ``SABOTAGE_TRANSITION``: where the fault occurs, a key of one of the tables below.
- ``SABOTAGE_FAULT``: ``kill`` (SIGKILL this worker) or ``flush`` (FLUSHALL Redis).
- ``SABOTAGE_WITHOUT``: the guards to remove, ``clock``, ``fence``, or both with a comma.
- ``SABOTAGE_KIND``: a kind of job that this worker is too old to know. It writes UNCLAIMED to stderr whenever it
  receives a message without claiming a job.
"""

import os
import signal
import sys
from collections.abc import Callable
from functools import wraps
from inspect import iscoroutinefunction
from itertools import count
from typing import Any

import redis

import domain.services
import domain.storage.file.fence
from domain.bulk.chunks import LaneSteps
from domain.bulk.expansion import ExpandOperation
from domain.bulk.service import BulkService
from domain.jobs.engine import Claim, JobEngine
from domain.jobs.kinds import JobHandler
from domain.jobs.model import JobMessage
from domain.jobs.store.leases import LeaseRepository
from domain.jobs.store.parents import ParentRepository
from domain.jobs.transport.job_queue import JobQueue
from domain.storage.context import Grant
from domain.storage.file.driver import FileDriver
from domain.storage.file.fence import FenceRecord
from domain.volumes.repository import VolumeRepository
from worker.main import main
from worker.runner import Runner

#: Where the fault occurs: (class, method, before or after the call).
TRANSITIONS: dict[str, tuple[type, str, str]] = {
    "before the claim": (LeaseRepository, "claim", "before"),
    "after the claim": (LeaseRepository, "claim", "if true"),
    "before publishing": (FenceRecord, "write", "before"),
    "after publishing": (Grant, "on_published", "before"),
    "before the commit": (JobEngine, "_record_effects", "after"),
    "after the commit": (JobQueue, "announce", "before"),
}

#: Transitions of the clone of a volume, which publishes three times: the snapshot, the clone, the snapshot's deletion.
CLONING_TRANSITIONS: dict[str, tuple[type, str, str]] = {
    "snapshot taken": (FileDriver, "take_snapshot", "after"),
    "before publishing the clone": (FenceRecord, "write", "before the second"),
    "after publishing the clone": (Grant, "on_published", "before the second"),
    "clone made": (FileDriver, "clone_snapshot", "after"),
    "before deleting the snapshot": (FenceRecord, "write", "before the third"),
    "after deleting the snapshot": (Grant, "on_published", "before the third"),
}
#: How many calls pass before the fault.
_PASSED: dict[str, int] = {"before the second": 1, "before the third": 2}

#: Transitions of a bulk job. "if true": after the call, if it returned True.
BULK_TRANSITIONS: dict[str, tuple[type, str, str]] = {
    "planned": (BulkService, "perform", "after"),
    "delegating, before the commit": (BulkService, "record", "after"),
    "acquiring, before the commit": (VolumeRepository, "acquire_many", "after"),
    "volumes acquired": (LaneSteps, "claim_next", "after"),
    "in the middle of the storage work": (Grant, "on_published", "before"),
    "storage work done": (LaneSteps, "record", "before"),
    "recording, before the commit": (VolumeRepository, "release", "after"),
    "chunk recorded": (LaneSteps, "record", "after"),
    "the parent's end, before the commit": (ParentRepository, "add_counts", "if true"),
}

#: Transitions of a bulk job that measures its volumes between claiming and acquiring them.
MEASURING_TRANSITIONS: dict[str, tuple[type, str, str]] = {
    "chunk claimed": (LaneSteps, "claim_items", "after"),
    "measured": (ExpandOperation, "measure", "after"),
    "measured volumes acquired": (LaneSteps, "acquire_volumes", "after"),
}


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def flush() -> None:
    client = redis.Redis.from_url(os.environ["CISTERN_REDIS_URL"])
    client.flushall()
    client.close()


def arm(owner: type, name: str, moment: str, fault: Callable[[], None]) -> None:
    """Wrap a method so that the fault occurs before or after it."""
    original, calls = getattr(owner, name), count()

    def begin() -> None:
        if moment == "before" or (moment in _PASSED and next(calls) >= _PASSED[moment]):
            fault()

    def end(result: Any) -> Any:
        if moment == "after" or (moment == "if true" and result):
            fault()
        return result

    @wraps(original)
    def with_fault(*args: Any, **kwargs: Any) -> Any:
        begin()
        return end(original(*args, **kwargs))

    @wraps(original)
    async def with_fault_async(*args: Any, **kwargs: Any) -> Any:
        begin()
        return end(await original(*args, **kwargs))

    setattr(owner, name, with_fault_async if iscoroutinefunction(original) else with_fault)


def disarm(guard: str) -> None:
    """Disable a guard: the deadline of grants, or the fence on storage."""
    if guard == "clock":
        setattr(Grant, "check", lambda _: None)  # noqa: B010
    if guard == "fence":
        setattr(domain.storage.file.fence, "refuse_stale", lambda *_: None)  # noqa: B010


def forget_kind(kind: str) -> None:
    """Remove the handler of a kind, as in a worker of an older version."""
    handlers, claim = domain.services.handlers, Runner.claim

    def older_handlers(*packages: Any, **settings: Any) -> dict[str, JobHandler]:
        table = handlers(*packages, **settings)
        del table[kind]
        return table

    async def claim_or_report(self: Runner, message: JobMessage) -> Claim | None:
        claimed = await claim(self, message)
        if claimed is None:
            sys.stderr.write("UNCLAIMED\n")
            sys.stderr.flush()
        return claimed

    setattr(domain.services, "handlers", older_handlers)  # noqa: B010
    setattr(Runner, "claim", claim_or_report)  # noqa: B010


if __name__ == "__main__":
    if "SABOTAGE_KIND" in os.environ:
        forget_kind(os.environ["SABOTAGE_KIND"])
    if "SABOTAGE_TRANSITION" in os.environ:
        tables = TRANSITIONS | CLONING_TRANSITIONS | BULK_TRANSITIONS | MEASURING_TRANSITIONS
        fault = {"kill": kill, "flush": flush}[os.environ["SABOTAGE_FAULT"]]
        arm(*tables[os.environ["SABOTAGE_TRANSITION"]], fault)
    for guard in filter(None, os.environ.get("SABOTAGE_WITHOUT", "").split(",")):
        disarm(guard)
    main()
