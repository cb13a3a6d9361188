"""What tests wait for: the ends of jobs, entries in the journal, words in a log, the ends of processes."""

import asyncio
from pathlib import Path
from typing import Final
from uuid import UUID

from domain.jobs.model import Job
from domain.services import Services
from tests.acceptance import journal
from tests.support.forked import Process

PATIENCE: Final = 60
ENDINGS: Final = {"published", "refused", "stopped", "failed"}


async def ended(services: Services, job_id: UUID) -> Job:
    """The job, once it has ended."""
    await services.watcher.ended(job_id, PATIENCE)
    job = await services.jobs.get(job_id)
    assert job.ended, f"{job.kind} is still {job.status} after {PATIENCE} s"
    return job


async def seen(path: Path, events: set[str], pid: int) -> None:
    """Wait until the process has written one of these into the journal."""
    async with asyncio.timeout(PATIENCE):
        while not any(entry.event in events and entry.pid == pid for entry in journal.read(path)):
            await asyncio.sleep(0.02)


async def said(log: Path, word: str, times: int = 1) -> None:
    """Wait until a log has a word in it, so many times."""
    async with asyncio.timeout(PATIENCE):
        while log.read_text().count(word) < times:
            await asyncio.sleep(0.02)


async def exit_code(process: Process) -> int:
    """The process's last word, once it has ended."""
    return await asyncio.to_thread(process.wait, PATIENCE)
