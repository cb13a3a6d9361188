"""Judges what a storm has left: by a trigger that saw every change, by the driver's journal, and by the disk.

Final sizes alone would not do: a system that carries out every job three times would pass.
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
    "CREATE TABLE seen_jobs (id uuid, was text, became text)",
    "CREATE TABLE seen_sizes (volume_id uuid, was bigint, became bigint)",
    """CREATE FUNCTION see_job() RETURNS trigger LANGUAGE plpgsql AS
       'BEGIN INSERT INTO seen_jobs VALUES (NEW.id, OLD.status, NEW.status); RETURN NULL; END'""",
    """CREATE FUNCTION see_size() RETURNS trigger LANGUAGE plpgsql AS
       'BEGIN INSERT INTO seen_sizes VALUES (NEW.id, OLD.size, NEW.size); RETURN NULL; END'""",
    """CREATE TRIGGER see_job AFTER UPDATE ON jobs FOR EACH ROW
       WHEN (OLD.status <> NEW.status) EXECUTE FUNCTION see_job()""",
    """CREATE TRIGGER see_size AFTER UPDATE ON volumes FOR EACH ROW
       WHEN (OLD.size <> NEW.size) EXECUTE FUNCTION see_size()""",
)

_NAMED_GROWTHS = """
    SELECT id, volume_id, (params->>'to_size')::bigint AS to_size, NULL AS by
    FROM jobs WHERE kind = 'volume.expand' AND status = 'succeeded'
    UNION ALL
    SELECT job_id, volume_id, to_size, to_size - from_size FROM job_items WHERE status = 'succeeded'
"""


@dataclass(frozen=True)
class Verdict:
    """Figures for the report; what is wrong has failed the test before."""

    jobs: int
    attempts: Counter[int]
    published_again: int
    #: What the workers have counted: rescued, retried, lost_rings.
    signals: dict[str, int]


async def watch_closely(database: Database) -> None:
    """Have PostgreSQL write down every move of a job and every change of a size."""
    async with database.transaction() as session:
        for statement in TRIGGERS:
            await session.execute(text(statement))


async def at_rest(database: Database) -> None:
    """Wait until the last job has ended; lanes do so a little after their parents."""
    async with asyncio.timeout(60):
        while await _rows(database, "SELECT id FROM jobs WHERE finished_at IS NULL"):
            await asyncio.sleep(0.05)


async def compare(database: Database, path: Path, expected: Expectations) -> Verdict:
    """Make sure that everything accepted has ended well, was recorded once, and that no growth is lost or doubled."""
    await at_rest(database)
    jobs = {row["id"]: row for row in await _rows(database, "SELECT * FROM jobs")}
    _assert_all_ended(jobs, expected)
    _assert_recorded_once(await _rows(database, "SELECT * FROM seen_jobs"))
    _assert_growth(
        await _rows(database, "SELECT * FROM seen_sizes"), await _rows(database, _NAMED_GROWTHS), expected.growths
    )
    again = _assert_orderly(journal.read(path), jobs)
    signals = {row["name"]: row["value"] for row in await _rows(database, "SELECT * FROM counters ORDER BY name")}
    return Verdict(
        len(expected.accepted), Counter(jobs[UUID(job)]["attempt"] for job in expected.accepted), again, signals
    )


def _assert_all_ended(jobs: dict[UUID, Any], expected: Expectations) -> None:
    accepted = {UUID(job_id) for job_id in expected.accepted}
    assert accepted <= jobs.keys(), "a job was lost"
    assert {jobs[job_id]["status"] for job_id in accepted} == {"succeeded"}
    own = {job_id for job_id, job in jobs.items() if job["parent_id"] is None}
    assert own == accepted, "a request was accepted twice"


def _assert_recorded_once(moves: list[Any]) -> None:
    assert all(JobStatus(move["became"]) in MOVES[JobStatus(move["was"])] for move in moves)
    ends = Counter(move["id"] for move in moves if move["became"] in ENDED)
    assert set(ends.values()) <= {1}


def _assert_growth(seen: list[Any], named: list[Any], growths: dict[str, int]) -> None:
    """Each growth that a job names was recorded once, by as much as was asked for, and nothing else was."""
    recorded = Counter((change["volume_id"], change["became"]) for change in seen)
    assert recorded == Counter((growth["volume_id"], growth["to_size"]) for growth in named)
    assert set(recorded.values()) <= {1}
    grown = {(change["volume_id"], change["became"]): change["became"] - change["was"] for change in seen}
    for growth in named:
        by = growths[str(growth["id"])]
        assert grown[growth["volume_id"], growth["to_size"]] == by
        assert growth["by"] in (None, by)


def _assert_orderly(entries: list[journal.Entry], jobs: dict[UUID, Any]) -> int:
    """Nothing was published by a job that had ended, and fences never went back. Returns how often one did so again."""
    fences: dict[UUID, tuple[int, int]] = {}
    published: Counter[tuple[UUID, UUID]] = Counter()
    for entry in entries:
        if entry.event != "published":
            continue
        assert fences.get(entry.subject, (0, 0)) <= entry.fence, entry
        assert entry.at <= jobs[entry.job_id]["finished_at"], entry
        fences[entry.subject] = entry.fence
        published[entry.job_id, entry.subject] += 1
    worked = {job_id for job_id, _ in published}
    single = {job_id for job_id, job in jobs.items() if not job["kind"].startswith("bulk.")}
    assert single <= worked, "a job succeeded without having done anything"
    return sum(published.values()) - len(published)


async def _rows(database: Database, query: str) -> list[Any]:
    async with database.transaction() as session:
        return list((await session.execute(text(query))).mappings())
