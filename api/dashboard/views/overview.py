"""What the overview shows: whether all is well, in one sentence, and what is the matter if not."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from api.dashboard.views.jobs import JobLine, lines_of
from domain.access.model import Principal, Role
from domain.db.pagination import PageRequest
from domain.jobs.overview import Overview
from domain.jobs.store.overview import Count
from domain.schedules.model import Run, RunOutcome, Schedule
from domain.schedules.repository import ScheduleFilter
from domain.services import Services
from domain.storage.directory import BackendStatus
from domain.volumes.attachments.service import Node

#: A due job that has waited for longer is worth a look, in seconds.
_LONG_WAIT: Final = 60.0
_MAX_SCHEDULES: Final = 5


@dataclass(frozen=True)
class Problem:
    """Something that needs attention, and where to go for it."""

    text: str
    link: str
    link_text: str


@dataclass(frozen=True)
class WorkerLine:
    """A worker, and the jobs of this project that it runs."""

    id: UUID
    host: str
    pid: int
    started_at: datetime
    running: Sequence[JobLine]


@dataclass(frozen=True)
class BackendLine:
    """A backend. Its sizes are None for those who may not see them."""

    name: str
    driver: str
    problem: str | None
    workers: int
    total: int | None
    used: int | None
    promised: int | None

    @classmethod
    def of(cls, status: BackendStatus, *, with_capacity: bool) -> "BackendLine":
        """Describe a backend."""
        row = status.row
        sizes = (row.total, row.used, row.promised) if with_capacity else (None, None, None)
        workers = sum(server.problem is None for server in status.servers)
        return cls(row.name, row.driver, status.problem, workers, *sizes)


@dataclass(frozen=True)
class ScheduleLine:
    """A schedule, and what became of its last run."""

    id: UUID
    name: str
    cron: str
    time_zone: str
    action: str
    enabled: bool
    next_run_at: datetime | None
    runs: Sequence[Run]

    @classmethod
    def of(cls, schedule: Schedule, runs: Sequence[Run]) -> "ScheduleLine":
        """Describe a schedule; ``runs`` newest first."""
        names = ("id", "name", "cron", "time_zone", "action", "enabled", "next_run_at")
        return cls(**{name: getattr(schedule, name) for name in names}, runs=runs)

    @property
    def last_status(self) -> str | None:
        """What became of the last run: the status of its job, or why it has none."""
        return run_status(self.runs[0]) if self.runs else None


def run_status(run: Run) -> str:
    """Return what became of a run: the status of its job, or why it has none."""
    return run.job_status or run.outcome


@dataclass(frozen=True)
class OverviewPage:
    """Everything on the overview."""

    headline: str
    problems: Sequence[Problem]
    waiting: Count
    oldest_seconds: float | None
    running: int
    today: Sequence[tuple[str, Count]]
    workers: Sequence[WorkerLine]
    backends: Sequence[BackendLine]
    nodes: Sequence[Node]
    schedules: Sequence[ScheduleLine]
    failed: Sequence[JobLine]


async def overview_page(services: Services, principal: Principal) -> OverviewPage:
    """Read what the overview shows.

    Raises:
        DatabaseUnavailable: PostgreSQL does not answer in time.
    """
    overview = await services.overview.latest(principal.project.id)
    request = PageRequest("overview", limit=_MAX_SCHEDULES)
    page, runs = await services.schedules.list_schedules(ScheduleFilter(), request, project_id=principal.project.id)
    schedules = [ScheduleLine.of(one, runs.get(one.id, ())) for one in page.items]
    jobs = await lines_of(services, [*overview.failed, *overview.running], principal)
    failed, running = jobs[: len(overview.failed)], jobs[len(overview.failed) :]
    is_system = principal.role is Role.SYSTEM
    backends = [BackendLine.of(status, with_capacity=is_system) for status in services.directory.all()]
    nodes = await services.attachments.nodes(project_id=principal.project.id)
    problems = [*_problems(overview, backends, schedules), *_problems_of_nodes(nodes)]
    return OverviewPage(
        headline=_headline(overview, problems),
        problems=problems,
        waiting=overview.waiting,
        oldest_seconds=overview.oldest_seconds,
        running=sum(line.parent_id is None for line in running),
        today=[(status.value, count) for status, count in overview.today.items()],
        workers=_workers(overview, running),
        backends=backends,
        nodes=nodes,
        schedules=schedules,
        failed=failed,
    )


def _workers(overview: Overview, running: Sequence[JobLine]) -> Sequence[WorkerLine]:
    return [
        WorkerLine(one.id, one.host, one.pid, one.started_at, [job for job in running if job.worker_id == one.id])
        for one in overview.workers
    ]


def _problems(
    overview: Overview, backends: Sequence[BackendLine], schedules: Sequence[ScheduleLine]
) -> Sequence[Problem]:
    found = []
    if not overview.workers:
        found.append(Problem("No worker is alive, so no job runs.", "/jobs?status=queued", "See what waits"))
    found += [
        Problem(f"No worker serves the backend {one.name}: {one.problem}.", "#backends", "See the backends")
        for one in backends
        if one.problem is not None and overview.workers
    ]
    if overview.oldest_seconds is not None and overview.oldest_seconds > _LONG_WAIT:
        minutes = round(overview.oldest_seconds / 60)
        text = f"The oldest job has been due for {minutes} {_plural('minute', minutes)}."
        found.append(Problem(text, "/jobs?status=queued", "See what waits"))
    if overview.failed:
        text = "A job of the last 24 hours has failed and was not retried."
        if len(overview.failed) > 1:
            text = "Jobs of the last 24 hours have failed and were not retried."
        found.append(Problem(text, "#failed", "See what failed"))
    found += [
        Problem(f"The schedule {one.name} has missed its last run.", f"/schedules/{one.id}", "See its runs")
        for one in schedules
        if one.runs and one.runs[0].outcome is RunOutcome.MISSED
    ]
    return found


def _problems_of_nodes(nodes: Sequence[Node]) -> Sequence[Problem]:
    return [
        Problem(f"The agent of the node {one.name} is not alive, and volumes are attached there.", "#nodes", "See it")
        for one in nodes
        if one.attachments and not one.is_alive
    ]


def _headline(overview: Overview, problems: Sequence[Problem]) -> str:
    number = len(overview.workers)
    if problems:
        return problems[0].text if len(problems) == 1 else f"{len(problems)} things need attention."
    workers = f"{number} {_plural('worker', number)}"
    waiting, more = overview.waiting
    if not waiting:
        return f"All is well: {workers}, nothing waiting."
    return f"All is well: {workers}, {waiting:,}{'+' if more else ''} {_plural('job', waiting)} waiting."


def _plural(word: str, number: int) -> str:
    return word if number == 1 else f"{word}s"
