"""The command ``cistern check``: print a line per finding, and a summary."""

import asyncio
import json
from collections import Counter
from dataclasses import asdict
from typing import Final

import typer

from domain.check.findings import Finding
from domain.errors import CisternError
from domain.services import open_check
from domain.settings import load_settings

CONSISTENT: Final = 0
FINDINGS_LEFT: Final = 1
#: The check could not be completed: the state is unknown.
CHECK_FAILED: Final = 2


def check(*, repair: bool, as_json: bool = False) -> int:
    """Check everything, repair what is safe to repair if ``repair``, and return the exit status."""
    try:
        return asyncio.run(_check(repair=repair, as_json=as_json))
    except CisternError as error:
        typer.echo(f"cistern: {' '.join(str(error).split())}", err=True)
        return CHECK_FAILED


async def _check(*, repair: bool, as_json: bool) -> int:
    checked, found, left = Counter[str](), 0, 0
    async with open_check(load_settings()) as run:
        async for finding in run.findings(checked, repair=repair):
            typer.echo(_line(finding, as_json=as_json))
            found += 1
            left += not finding.repaired
    typer.echo(_summary(checked, found=found, left=left), err=as_json)
    return FINDINGS_LEFT if left else CONSISTENT


def _line(finding: Finding, *, as_json: bool) -> str:
    return json.dumps(asdict(finding)) if as_json else str(finding)


def _summary(checked: Counter[str], *, found: int, left: int) -> str:
    numbers = ", ".join(f"{name}: {number}" for name, number in checked.items()) or "nothing there"
    result = f"found {found}, repaired {found - left}, left {left}" if found else "all agree"
    return f"{numbers}; {result}"
