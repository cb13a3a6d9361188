"""Checks the result of a storm against triggers that recorded every change, and against the driver's journal.

Final sizes alone are not enough: a system that carries out every job three times would pass.
"""

import asyncio
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from sqlalchemy import text

from domain.db.database import Database
from domain.jobs.states import ENDED, MOVES, JobStatus
from tests.acceptance import journal
from tests.acceptance.clients import Expectations

TRIGGERS = (
    "CREATE TABLE job_changes (id uuid, previous text, current text)",
    "CREATE TABLE size_changes (volume_id uuid, previous bigint, current bigint)",
    """CREATE FUNCTION record_job() RETURNS trigger LANGUAGE plpgsql AS
       'BEGIN INSERT INTO job_changes VALUES (NEW.id, OLD.status, NEW.status); RETURN NULL; END'""",
    """CREATE FUNCTION record_size() RETURNS trigger LANGUAGE plpgsql AS
       'BEGIN INSERT INTO size_changes VALUES (NEW.id, OLD.size, NEW.size); RETURN NULL; END'""",
    """CREATE TRIGGER record_job AFTER UPDATE ON jobs FOR EACH ROW
       WHEN (OLD.status <> NEW.status) EXECUTE FUNCTION record_job()""",
    """CREATE TRIGGER record_size AFTER UPDATE ON volumes FOR EACH ROW
       WHEN (OLD.size <> NEW.size) EXECUTE FUNCTION record_size()""",
)

_NAMED_GROWTHS = """
    SELECT id, volume_id, (params->>'to_size')::bigint AS to_size, NULL AS by
    FROM jobs WHERE kind = 'volume.expand' AND status = 'succeeded'
    UNION ALL
    SELECT job_id, volume_id, to_size, to_size - from_size FROM job_items WHERE status = 'succeeded'
"""


@dataclass(frozen=True)
class StormResult:
    """Figures for the report; anything wrong has already failed the test."""

    jobs: int
    attempts: Counter[int]
    published_again: int
    #: The workers' counters: rescued, retried, lost_messages.
    counters: dict[str, int]


async def record_changes(database: Database) -> None:
    """Install triggers that record every change of a job's status and of a volume's size."""
    async with database.transaction() as session:
        for statement in TRIGGERS:
            await session.execute(text(statement))


async def wait_until_idle(database: Database) -> None:
    """Wait until the last job has ended; lanes end a little later than their parents."""
    async with asyncio.timeout(60):
        while await _rows(database, "SELECT id FROM jobs WHERE finished_at IS NULL"):
            await asyncio.sleep(0.05)


async def check_storm(database: Database, path: Path, expected: Expectations) -> StormResult:
    """Assert that every accepted job succeeded and was recorded once, and that no growth was lost or doubled."""
    await wait_until_idle(database)
    jobs = {row["id"]: row for row in await _rows(database, "SELECT * FROM jobs")}
    _assert_all_ended(jobs, expected)
    _assert_recorded_once(await _rows(database, "SELECT * FROM job_changes"))
    _assert_growth(
        await _rows(database, "SELECT * FROM size_changes"), await _rows(database, _NAMED_GROWTHS), expected.growths
    )
    published_again = _assert_orderly(journal.read(path), jobs)
    counters = {row["name"]: row["value"] for row in await _rows(database, "SELECT * FROM counters ORDER BY name")}
    return StormResult(
        len(expected.accepted),
        Counter(jobs[UUID(job)]["attempt"] for job in expected.accepted),
        published_again,
        counters,
    )


def _assert_all_ended(jobs: dict[UUID, Any], expected: Expectations) -> None:
    accepted = {UUID(job_id) for job_id in expected.accepted}
    assert accepted <= jobs.keys(), "a job was lost"
    assert {jobs[job_id]["status"] for job_id in accepted} == {"succeeded"}
    requested = {job_id for job_id, job in jobs.items() if job["parent_id"] is None}
    assert requested == accepted, "a request was accepted twice"


def _assert_recorded_once(moves: list[Any]) -> None:
    assert all(JobStatus(move["current"]) in MOVES[JobStatus(move["previous"])] for move in moves)
    ends = Counter(move["id"] for move in moves if move["current"] in ENDED)
    assert set(ends.values()) <= {1}


def _assert_growth(changes: list[Any], named: list[Any], growths: dict[str, int]) -> None:
    """Assert that each growth named by a job was recorded once, by the requested amount, and that there is no other."""
    recorded = Counter((change["volume_id"], change["current"]) for change in changes)
    assert recorded == Counter((growth["volume_id"], growth["to_size"]) for growth in named)
    assert set(recorded.values()) <= {1}
    grown = {(change["volume_id"], change["current"]): change["current"] - change["previous"] for change in changes}
    for growth in named:
        by = growths[str(growth["id"])]
        assert grown[growth["volume_id"], growth["to_size"]] == by
        assert growth["by"] in (None, by)


def _assert_orderly(entries: list[journal.Entry], jobs: dict[UUID, Any]) -> int:
    """Assert that no ended job published and fences never decreased; return the number of repeated publications."""
    fences: dict[UUID, tuple[int, int]] = {}
    published: Counter[tuple[UUID, UUID]] = Counter()
    for entry in entries:
        if entry.event != "published":
            continue
        assert fences.get(entry.subject, (0, 0)) <= entry.fence, entry
        assert entry.at <= jobs[entry.job_id]["finished_at"], entry
        fences[entry.subject] = entry.fence
        published[entry.job_id, entry.subject] += 1
    publishers = {job_id for job_id, _ in published}
    single = {job_id for job_id, job in jobs.items() if not job["kind"].startswith("bulk.")}
    assert single <= publishers, "a job succeeded without publishing anything"
    return sum(published.values()) - len(published)


async def _rows(database: Database, query: str) -> list[Any]:
    async with database.transaction() as session:
        return list((await session.execute(text(query))).mappings())
