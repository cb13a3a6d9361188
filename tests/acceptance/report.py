"""Writes the results of the storms as a Markdown table."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.acceptance.clients import Expectations
from tests.acceptance.judge import StormResult
from tests.acceptance.scale import SCALE

_HEAD = f"""# Faults

Seed {SCALE.seed}, {SCALE.clients} clients, {SCALE.delay_ms} ms for each storage operation.

| storm | jobs | seconds | faults | 503 | attempts | published again | counters |
|---|---|---|---|---|---|---|---|
"""


@dataclass
class Report:
    """Collects one line per storm and rewrites the page after each; writes nothing if ``path`` is None."""

    path: Path | None
    lines: list[str] = field(default_factory=list)

    def add(self, storm: str, seconds: float, expected: Expectations, result: StormResult) -> None:
        attempts = _joined({f"{number}x": jobs for number, jobs in sorted(result.attempts.items())})
        cells = [storm, result.jobs, f"{seconds:.0f}", _joined(expected.faults), expected.status_codes[503], attempts]
        cells += [result.published_again, _joined(result.counters)]
        self.lines.append("| " + " | ".join(map(str, cells)) + " |\n")
        if self.path is not None:
            self.path.parent.mkdir(exist_ok=True)
            self.path.write_text(_HEAD + "".join(self.lines))


def _joined(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in numbers.items())
