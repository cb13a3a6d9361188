"""What `cistern check` prints: a line for each finding, and one that says how much was looked at."""

import asyncio
import json
from dataclasses import asdict
from typing import Final

import typer

from domain.check.findings import Finding, Report
from domain.errors import CisternError
from domain.services import open_check
from domain.settings import load_settings

AGREES: Final = 0
LEFT: Final = 1
#: Not 1: nobody knows whether something is wrong.
CANNOT: Final = 2


def check(*, repair: bool, as_json: bool = False) -> int:
    """Look at everything, and mend what can be mended if ``repair``; returns the exit code."""
    try:
        return asyncio.run(_check(repair=repair, as_json=as_json))
    except CisternError as error:
        typer.echo(f"cistern: {' '.join(str(error).split())}", err=True)
        return CANNOT


async def _check(*, repair: bool, as_json: bool) -> int:
    report, found, left = Report(), 0, 0
    async with open_check(load_settings()) as inspection:
        async for finding in inspection.findings(report, repair=repair):
            typer.echo(_line(finding, as_json=as_json))
            found += 1
            left += not finding.repaired
    typer.echo(_total(report, found=found, left=left), err=as_json)
    return LEFT if left else AGREES


def _line(finding: Finding, *, as_json: bool) -> str:
    return json.dumps(asdict(finding)) if as_json else str(finding)


def _total(report: Report, *, found: int, left: int) -> str:
    looked_at = ", ".join(f"{name}: {number}" for name, number in report.looked_at.items()) or "nothing there"
    verdict = f"found {found}, repaired {found - left}, left {left}" if found else "all agree"
    return f"{looked_at}; {verdict}"
