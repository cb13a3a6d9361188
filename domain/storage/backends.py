"""The storage backends that this process can reach, made from their URLs.

A driver registers a factory in the entry point group ``cistern.storage``, under the scheme of its URLs. The factory is
called with a `DriverUrl` and the number of threads that may work at once, and returns a `StorageDriver`.
"""

import asyncio
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Final, Self

from domain.db.database import in_transaction
from domain.errors import ConfigurationError, UnknownBackend
from domain.storage.driver import StorageDriver
from domain.storage.urls import DriverUrl

ENTRY_POINTS: Final = "cistern.storage"

Factory = Callable[[DriverUrl, int], StorageDriver]


class Backends:
    """The backends by name."""

    def __init__(self, drivers: Mapping[str, StorageDriver], schemes: Mapping[str, str]) -> None:
        self._drivers = dict(drivers)
        self._schemes = dict(schemes)

    @classmethod
    def open(cls, urls: Mapping[str, str], threads: int) -> Self:
        """Make a driver for every URL.

        Raises:
            ConfigurationError: naming the backend that cannot be used, and why.
        """
        drivers = {name: _named(name, url, threads) for name, url in urls.items()}
        return cls(drivers, {name: url.partition(":")[0] for name, url in urls.items()})

    def __contains__(self, name: object) -> bool:
        return name in self._drivers

    def names(self) -> list[str]:
        """List the backends, in the order they were configured."""
        return list(self._drivers)

    def scheme(self, name: str) -> str:
        """Tell a backend's kind, such as ``file``, without its place."""
        self._require(name)
        return self._schemes[name]

    def get(self, name: str) -> StorageDriver:
        """Hand out a driver, but never inside a transaction, which would stay open as long as the work."""
        if in_transaction():
            raise RuntimeError("storage work inside a transaction")
        self._require(name)
        return self._drivers[name]

    async def close(self) -> None:
        """Close all drivers, after the work that still runs in them has ended."""
        await asyncio.gather(*(driver.close() for driver in self._drivers.values()))

    def _require(self, name: str) -> None:
        if name not in self._drivers:
            raise UnknownBackend(f"There is no backend named {name!r}.", field="backend")


def open_driver(url: str | DriverUrl, threads: int) -> StorageDriver:
    """Open the driver that a URL describes; ``threads`` may work on it at once.

    Raises:
        ConfigurationError: the URL has no known scheme, an unknown option, or a place that cannot be used.
    """
    parsed = DriverUrl.parse(url) if isinstance(url, str) else url
    factory = _factory(parsed)
    driver = factory(parsed, threads)
    if parsed.options:
        raise ConfigurationError(f"unknown option {', '.join(parsed.options)}")
    return driver


def _named(name: str, url: str, threads: int) -> StorageDriver:
    try:
        return open_driver(url, threads)
    except ConfigurationError as error:
        raise ConfigurationError(f"CISTERN_BACKENDS: backend {name!r}: {error}") from error


def _factory(url: DriverUrl) -> Factory:
    registered = entry_points(group=ENTRY_POINTS)
    if url.driver not in registered.names:
        known = ", ".join(sorted(registered.names))
        raise ConfigurationError(f"unknown driver {url.driver!r}; choose from {known}")
    factory: Factory = registered[url.driver].load()
    return factory
