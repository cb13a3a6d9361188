"""The command ``cistern check``, which works on the database and the storage themselves."""

import asyncio
import json
import math
import os
import sys
import traceback
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Final
from uuid import UUID

import typer

from api.cli.app import report
from api.cli.session import new_group
from domain.check.attachments import HostView
from domain.errors import CisternError
from domain.printable import printable, printable_lines
from domain.services import open_check
from domain.settings import Settings, load_settings

#: The exit status of a check that could not look at everything.
_CHECK_FAILED: Final = 2
#: Maximum number of subjects that the last line of a check names; each has a line of its own above.
_MAX_ENUMERATED: Final = 5

check = new_group()


@check.command("check")
def check_storage(
    *,
    repair: Annotated[bool, typer.Option("--repair", help="Repair what can be repaired safely.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print each finding as a line of JSON.")] = False,
) -> None:
    """Compare database, ledger and storage; as root on a node, also what is mounted there.

    Exit status: 0 all agree or was repaired, 1 something is left, 2 not everything could be looked at.
    """
    try:
        status = asyncio.run(_check(repair=repair, as_json=as_json))
    except CisternError as error:
        report(error)
        status = _CHECK_FAILED
    except Exception:  # noqa: BLE001 (the interpreter would exit with 1, as after findings)
        typer.echo(printable_lines(traceback.format_exc()), err=True)
        status = _CHECK_FAILED
    sys.exit(status)


async def _check(*, repair: bool, as_json: bool) -> int:
    """Print a line per finding and a summary, and return the exit status."""

    def on_wait(seconds: float) -> None:
        typer.echo(f"waiting {math.ceil(seconds)} s for the leases of workers that may be dead", err=True)

    checked, unseen, found, left = Counter[str](), dict[str, None](), 0, 0
    settings = load_settings()
    async with open_check(settings, this_host(settings)) as run:
        async for finding in run.findings(checked, repair=repair, on_wait=on_wait):
            typer.echo(json.dumps(asdict(finding)) if as_json else str(finding))
            if finding.is_blind:
                unseen[finding.subject] = None
            else:
                found += 1
                left += not finding.repaired
    numbers = ", ".join(f"{name}: {number}" for name, number in checked.items()) or "nothing there"
    agree = "the rest agrees" if unseen else "all agree"
    result = f"found {found}, repaired {found - left}, left {left}" if found else agree
    if unseen:
        result += f"; could not look at {_enumerated([*unseen])}"
    typer.echo(printable(f"{numbers}; {result}"), err=as_json)
    return _CHECK_FAILED if unseen else 1 if left else 0


def this_host(settings: Settings) -> HostView | None:
    """Return what can look at this host, if it has been a node and may be looked at."""
    if os.geteuid() != 0 or not settings.node_dir.is_dir():
        return None
    from worker.node.host.host import Host

    async def found() -> Mapping[UUID, str]:
        return {one.volume_id: one.mount_path or one.device for one in await Host(settings.node_dir).found()}

    return HostView(settings.node, found)


def _enumerated(subjects: list[str]) -> str:
    more = len(subjects) - _MAX_ENUMERATED
    return ", ".join(subjects[:_MAX_ENUMERATED]) + (f" and {more} more" if more > 0 else "")
