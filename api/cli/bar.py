"""The progress bar of a job. Imported only when one is shown: rich would double the time of a start."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from api.cli.client import JsonObject
from api.cli.columns import completed_count, estimated_end, progress_text, rate_text
from api.cli.render import open_console
from domain.jobs.states import JobStatus


class _TimeColumn(ProgressColumn):
    """The time that is left, by the API's estimate; the elapsed time if there is none."""

    def render(self, task: Task) -> Text:
        end: datetime | None = task.fields["end"]
        if end is None:
            return Text(str(timedelta(seconds=int(task.elapsed or 0))))
        left = max(0, round((end - datetime.now(UTC)).total_seconds()))
        return Text(f"{timedelta(seconds=left)} left")


def _title(job: JsonObject) -> str:
    """Return the kind and the status, except `running`: the bar shows that, and 80 columns have no room for it."""
    kind, status = str(job["kind"]), str(job["status"])
    return kind if status == JobStatus.RUNNING else f"{kind} {status}"


@contextmanager
def progress_bar() -> Iterator[Callable[[JsonObject], None]]:
    """Yield a function that shows a changed job as a bar, with its rate and the time that is left."""
    title = TextColumn("{task.description}", markup=False)
    counts, rate = (TextColumn(f"{{task.fields[{name}]}}", markup=False) for name in ("counts", "rate"))
    columns = (SpinnerColumn(), title, BarColumn(None), counts, rate, _TimeColumn(Column(no_wrap=True)))
    with Progress(*columns, console=open_console(), expand=True) as bars:
        bar = bars.add_task("", total=None, counts="", rate="", end=None)
        yield lambda job: bars.update(
            bar,
            description=_title(job),
            total=(job["progress"] or {}).get("total"),
            completed=completed_count(job),
            counts=progress_text(job),
            rate=rate_text(job),
            end=estimated_end(job),
            refresh=True,
        )
