"""What the fault suite has measured, as a page to read."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.acceptance.clients import Expectations
from tests.acceptance.judge import Verdict
from tests.acceptance.scale import SCALE

_HEAD = f"""# Faults

Seed {SCALE.seed}, {SCALE.customers} customers, {SCALE.delay_ms} ms for each storage operation.

| storm | jobs | seconds | strikes | 503 | attempts | done again | signals |
|---|---|---|---|---|---|---|---|
"""


@dataclass
class Report:
    """Gathers a line for each storm; the page is whole after each of them, or there is none (``path`` is None)."""

    path: Path | None
    lines: list[str] = field(default_factory=list)

    def note(self, storm: str, seconds: float, expected: Expectations, verdict: Verdict) -> None:
        attempts = _words({f"{number}x": jobs for number, jobs in sorted(verdict.attempts.items())})
        cells = [storm, verdict.jobs, f"{seconds:.0f}", _words(expected.strikes), expected.answers[503], attempts]
        cells += [verdict.published_again, _words(verdict.signals)]
        self.lines.append("| " + " | ".join(map(str, cells)) + " |\n")
        if self.path is not None:
            self.path.parent.mkdir(exist_ok=True)
            self.path.write_text(_HEAD + "".join(self.lines))


def _words(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in numbers.items())
