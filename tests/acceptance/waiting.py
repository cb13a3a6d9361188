"""Waits for the ends of jobs and processes, for entries in the journal and for texts in a log."""

import asyncio
from pathlib import Path
from typing import Final
from uuid import UUID

from domain.db.base import DEFAULT_PROJECT
from domain.jobs.model import Job
from domain.services import Services
from tests.acceptance import journal
from tests.support.forked import Process

TIMEOUT_SECONDS: Final = 60
ENDINGS: Final = {"published", "refused", "stopped", "failed"}


async def ended(services: Services, job_id: UUID) -> Job:
    """Wait until the job has ended, and return it."""
    await services.watcher.ended(job_id, TIMEOUT_SECONDS)
    job = await services.jobs.get(job_id, project_id=DEFAULT_PROJECT)
    assert job.ended, f"{job.kind} is still {job.status} after {TIMEOUT_SECONDS} s"
    return job


async def wait_for_entry(path: Path, events: set[str], pid: int) -> None:
    """Wait until the process has written one of these events into the journal."""
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while not any(entry.event in events and entry.pid == pid for entry in journal.read(path)):
            await asyncio.sleep(0.02)


async def wait_for_log(log: Path, expected: str, times: int = 1) -> None:
    """Wait until the log contains the text, at least ``times`` times."""
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while log.read_text().count(expected) < times:
            await asyncio.sleep(0.02)


async def exit_code(process: Process) -> int:
    """Wait until the process has ended, and return its exit status."""
    return await asyncio.to_thread(process.wait, TIMEOUT_SECONDS)
