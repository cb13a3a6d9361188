"""The storage backends that this process can reach, opened from their URLs.

A distribution registers a driver as a factory in the entry point group ``cistern.storage``, under the scheme of its
URLs. The factory is called with a `DriverUrl` and the number of threads that may work at once, and returns a
`StorageDriver`. It removes the options it knows from `DriverUrl.options`; options left over are refused.
"""

import asyncio
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoints, entry_points
from types import MappingProxyType
from typing import Final, Self, cast

from domain.db.database import in_transaction
from domain.errors import ConfigurationError
from domain.storage.checked import CheckedDriver
from domain.storage.driver import StorageDriver
from domain.storage.errors import BackendUnavailable
from domain.storage.model import NODE_PREFIX
from domain.storage.traced import traced

ENTRY_POINT_GROUP: Final = "cistern.storage"

#: The problem of a place that no worker has given an identity yet, so that there is nothing in it.
NOT_USED_YET: Final = "no worker has used it yet"


@dataclass
class DriverUrl:
    """A backend's URL in parts: ``scheme:path?option=value&...``.

    URLs are taken literally, without percent-decoding: a path may contain % and #.
    A driver removes the options it knows from ``options``; all others are refused.
    """

    scheme: str
    path: str
    options: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, url: str) -> Self:
        """Split a URL into its parts."""
        scheme, _, rest = url.partition(":")
        path, _, query = rest.partition("?")
        options = (option.partition("=") for option in query.split("&") if option)
        return cls(scheme, path, {name: value for name, _, value in options})

    @property
    def driver(self) -> str:
        """The name of the driver that opens this URL: the scheme up to its first ``+``."""
        return self.scheme.partition("+")[0]

    @property
    def inner(self) -> Self:
        """The URL for the driver inside a wrapper: ``wrapper+scheme:`` without ``wrapper+``, sharing the options."""
        return type(self)(self.scheme.partition("+")[2], self.path, self.options)

    def require_no_path(self) -> None:
        """Refuse a path in the URL of a driver that has none.

        Raises:
            ConfigurationError: the URL has a path.
        """
        if self.path:
            raise ConfigurationError(f"{self.scheme}: takes no path, but has {self.path!r}")


DriverFactory = Callable[[DriverUrl, int], StorageDriver]


class Backends:
    """The configured backends by name, and why this process must not use some of them."""

    def __init__(
        self,
        drivers: Mapping[str, StorageDriver],
        schemes: Mapping[str, str],
        problems: Mapping[str, str | None] = MappingProxyType({}),
    ) -> None:
        self._drivers = dict(drivers)
        self._for_work = {
            name: traced(cast("StorageDriver", CheckedDriver(driver)), name, schemes.get(name, ""))
            for name, driver in drivers.items()
        }
        self._schemes = dict(schemes)
        self._problems = dict(problems)

    @classmethod
    def open(cls, urls: Mapping[str, str], threads: int) -> Self:
        """Open a driver for every URL. None that has a place is used before `set_problems` has said that it may be.

        Raises:
            ConfigurationError: a URL is invalid; the message names the backend and the reason.
        """
        drivers = {}
        for name, url in urls.items():
            try:
                _require_no_node(name)
                drivers[name] = open_driver(url, threads)
                _require_absolute_path(url, drivers[name].place)
            except ConfigurationError as error:
                raise ConfigurationError(f"CISTERN_BACKENDS: backend {name!r}: {error}") from error
        problems = {name: NOT_USED_YET for name, driver in drivers.items() if driver.place is not None}
        return cls(drivers, {name: DriverUrl.parse(url).scheme for name, url in urls.items()}, problems)

    def __contains__(self, name: object) -> bool:
        return name in self._drivers

    def __iter__(self) -> Iterator[str]:
        return iter(self._drivers)

    def names(self) -> list[str]:
        """Return the names of the backends in the order of the configuration."""
        return list(self._drivers)

    def scheme(self, name: str) -> str:
        """Return the scheme of a configured backend's URL, such as ``file``, without the path."""
        return self._schemes[name]

    def served(self) -> Sequence[str]:
        """Return the names of the backends that this process can use now."""
        return [name for name in self._drivers if self._problems.get(name) is None]

    def problem(self, name: str) -> str | None:
        """Return why this process must not use a backend, None if it may."""
        return self._problems.get(name)

    def set_problems(self, problems: Mapping[str, str | None]) -> None:
        """Say of each backend why it must not be used, or that it may be (None)."""
        self._problems = dict(problems)

    def driver(self, name: str) -> StorageDriver:
        """Return the driver of a configured backend, whether it may be used or not."""
        return self._drivers[name]

    def get(self, name: str) -> StorageDriver:
        """Return a driver for work, whose reports can be believed.

        Raises:
            BackendUnavailable: this process has no such backend, or must not use it now; another process may.
            RuntimeError: called inside a transaction, which would stay open for as long as the storage work takes.
        """
        if in_transaction():
            raise RuntimeError("storage work inside a transaction")
        problem = self._problems.get(name) if name in self else "it is not among the CISTERN_BACKENDS of this process"
        if problem is not None:
            raise BackendUnavailable(f"The backend {name!r} cannot be used: {problem}.")
        return self._for_work[name]

    async def close(self) -> None:
        """Close all drivers, after the work that is still running in them has ended."""
        await asyncio.gather(*(driver.close() for driver in self._drivers.values()))


def open_driver(url: str | DriverUrl, threads: int) -> StorageDriver:
    """Open the driver that a URL names; at most ``threads`` operations run at once.

    Raises:
        ConfigurationError: the scheme or an option is unknown, the driver cannot be imported, or the path is unusable.
    """
    parsed = DriverUrl.parse(url) if isinstance(url, str) else url
    overcommit = parsed.options.pop("overcommit", None)
    driver = _load_factory(parsed.driver)(parsed, threads)
    if overcommit is not None:
        driver.overcommit = _ratio(overcommit)
    if parsed.options:
        raise ConfigurationError(f"unknown option {', '.join(parsed.options)}")
    return driver


def _require_no_node(name: str) -> None:
    if name.startswith(NODE_PREFIX):
        raise ConfigurationError(f"a name that begins with {NODE_PREFIX!r} is that of a node")


def _require_absolute_path(url: str, place: str | None) -> None:
    """Refuse a path below the working directory: a process that is started elsewhere would use another place."""
    if place is not None and place.startswith("/") and not DriverUrl.parse(url).path.startswith("/"):
        raise ConfigurationError(f"the path must be absolute, such as {place}")


def _ratio(text: str) -> float:
    try:
        if 0 < (ratio := float(text)) < math.inf:
            return ratio
    except ValueError:
        pass
    raise ConfigurationError(f"overcommit={text!r} is not a positive number")


@cache
def _registered(search_path: tuple[str, ...]) -> EntryPoints:  # noqa: ARG001 (the key of the cache)
    """Return the drivers of all distributions on Python's search path; finding them reads many files, in 20 ms."""
    return entry_points(group=ENTRY_POINT_GROUP)


def _load_factory(name: str) -> DriverFactory:
    registered = _registered(tuple(sys.path))
    if name not in registered.names:
        known = ", ".join(sorted(registered.names))
        raise ConfigurationError(f"unknown driver {name!r}; choose from {known}")
    entry_point = registered[name]
    try:
        factory: DriverFactory = entry_point.load()
    except Exception as error:  # importing code of another distribution may raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigurationError(f"cannot load driver {name!r} from {entry_point.value}: {reason}") from error
    return factory
