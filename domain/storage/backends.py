"""Which storage backends this process can reach, made from their URLs: ``scheme:place?option=value&...``.

URLs are taken literally, nothing in them is percent-decoded: a path with a % or a # is just that path.
"""

import asyncio
import errno
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from pydantic import ByteSize, TypeAdapter, ValidationError

from domain.database import in_transaction
from domain.errors import ConfigurationError, UnknownBackend
from domain.storage.driver import StorageDriver
from domain.storage.faulty import FaultInjector
from domain.storage.file import FileDriver
from domain.storage.memory import MemoryDriver
from domain.storage.null import NullDriver


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


def open_driver(url: str, threads: int) -> StorageDriver:
    """Make the driver that a URL describes.

    Raises:
        ConfigurationError: the URL has no known scheme, an unknown option, or a place that cannot be used.
    """
    scheme, _, rest = url.partition(":")
    place, _, query = rest.partition("?")
    options = dict(_option(part) for part in query.split("&") if part)
    driver = _build(scheme, place, options, threads)
    if options:
        raise ConfigurationError(f"unknown option {', '.join(options)}")
    return driver


def _named(name: str, url: str, threads: int) -> StorageDriver:
    try:
        return open_driver(url, threads)
    except ConfigurationError as error:
        raise ConfigurationError(f"CISTERN_BACKENDS: backend {name!r}: {error}") from error


def _option(part: str) -> tuple[str, str]:
    name, _, value = part.partition("=")
    return name, value


def _build(scheme: str, place: str, options: dict[str, str], threads: int) -> StorageDriver:
    """Make a driver, taking the options that it understands out of ``options``."""
    if scheme.startswith("faulty+"):
        own = {name: options.pop(name) for name in FaultInjector.OPTIONS if name in options}
        inner = _build(scheme.removeprefix("faulty+"), place, options, threads)
        return FaultInjector(inner, own) if own else inner  # with nothing to disturb, nothing in between
    if scheme == "file":
        return _open_file(place, options.pop("allocate", "sparse"), threads)
    if scheme in ("null", "memory") and place:
        raise ConfigurationError(f"{scheme}: takes no path, but has {place!r}")
    if scheme == "null":
        return NullDriver()
    if scheme == "memory":
        return MemoryDriver(_capacity(options.pop("capacity", None)))
    raise ConfigurationError(f"unknown driver {scheme!r}; choose from file, null, memory, faulty+...")


def _open_file(place: str, allocate: str, threads: int) -> FileDriver:
    if allocate not in ("sparse", "full"):
        raise ConfigurationError(f"allocate={allocate!r} is neither sparse nor full")
    # file:///srv/volumes is what other programs call file:/srv/volumes.
    root = place.removeprefix("//") if place.startswith("///") else place
    if not root or root.startswith("//"):
        raise ConfigurationError(f"file: needs a path, such as file:/srv/volumes, not {place!r}")
    driver = FileDriver(Path(root), threads, reserve=allocate == "full")
    try:
        driver.prepare()
    except OSError as error:
        cannot = "reserve room (allocate=full)" if error.errno == errno.EOPNOTSUPP else "be written"
        raise ConfigurationError(f"{driver.root} cannot {cannot}: {error.strerror}") from error
    return driver


def _capacity(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return TypeAdapter(ByteSize).validate_python(text)
    except ValidationError as error:
        raise ConfigurationError(f"capacity={text!r} is no size, such as 10MiB") from error
