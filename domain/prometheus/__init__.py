"""The metrics of a process in the format of Prometheus, whose library is imported only if `CISTERN_METRICS` is set."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from domain.metrics import NOTHING, Recorder

if TYPE_CHECKING:
    from domain.services import Services


@asynccontextmanager
async def serving_if_set(
    address: tuple[str, int] | None, services: "Services | None" = None
) -> AsyncIterator[Recorder]:
    """Call `serving` if there is an address; otherwise nothing is recorded.

    Raises:
        ConfigurationError: the address cannot be used.
    """
    if address is None:
        yield NOTHING
        return
    from domain.prometheus.server import serving  # noqa: PLC0415 (imported only if it is used)

    async with serving(address, services) as recorder:
        yield recorder
