"""The command ``cistern doctor``: examines settings, servers, workers, the key and the API, and says what to do."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Final

import typer

from api.cli.client import ApiCallFailed, ApiUnreachable, open_api
from api.cli.columns import CHECKS
from api.cli.local_settings import load_local_settings
from api.cli.session import AsJson, Url, new_group, print_objects
from domain.doctor.examination import examine
from domain.doctor.findings import Finding, State, fail, ok, warn
from domain.errors import ConfigurationError
from domain.logs import configure_logging
from domain.settings import load_log_settings, require_servers

doctor = new_group()

_SETTINGS: Final = "settings"


@doctor.command("doctor")
def run_doctor(*, as_json: AsJson = False, url: Url = "http://127.0.0.1:8000") -> None:
    """Examine settings, servers and workers, and say what is wrong.

    Without CISTERN_DATABASE_URL it examines the servers of a running `cistern up`. Exit status: 0 nothing is broken,
    1 something is.
    """
    configure_logging(load_log_settings())
    logging.disable()  # what the examination comes upon is among its findings
    findings = asyncio.run(_examine(url))
    print_objects([one._asdict() for one in findings], CHECKS, as_json=as_json)
    raise typer.Exit(any(one.state is State.FAIL for one in findings))


async def _examine(url: str) -> list[Finding]:
    found = [finding async for finding in _examine_servers()]
    return [*found, *_examine_api(url)]


async def _examine_servers() -> AsyncIterator[Finding]:
    try:
        settings, origin = load_local_settings()
        require_servers(settings)
    except ConfigurationError as error:
        yield fail(_SETTINGS, error.message, "set what the message names; the documentation lists all settings")
        return
    yield ok(_SETTINGS, f"from {origin}")
    limits = {"transaction_seconds": settings.database_timeout_seconds, "lease": settings.lease_seconds}
    async for finding in examine(settings.database_url, settings.redis_url, **limits):
        yield finding


def _examine_api(url: str) -> Iterator[Finding]:
    """Yield whether the API answers, and what it says of the key of this command line."""
    try:
        api = open_api(url)
    except ApiCallFailed as error:
        yield fail("key", error.message, "see CISTERN_KEY, CISTERN_DATA_DIR and CISTERN_CA_FILE")
        return
    try:
        api.get("/backends")
    except ApiUnreachable as error:
        yield warn("api", error.message, "start it with `cistern serve`, or name its address in CISTERN_URL")
    except ApiCallFailed as error:
        yield ok("api", f"answers at {url}")
        yield fail("key", error.message, "put a valid key into CISTERN_KEY: `cistern keys create` makes one")
    else:
        yield ok("api", f"answers at {url}")
        yield ok("key", "accepted by the API")
