"""A span for each call of a driver that belongs to an attempt."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, cast

from domain import tracing
from domain.storage.checked import CHANGING
from domain.storage.driver import StorageDriver

_TRACED: Final = CHANGING | {"measure"}


def traced(driver: StorageDriver, backend: str, scheme: str) -> StorageDriver:
    """Wrap a driver if this process traces; otherwise return it as it is."""
    tracer = tracing.tracer()
    return driver if tracer is None else cast("StorageDriver", TracedDriver(driver, tracer, backend, scheme))


class TracedDriver:
    """Delegates to a driver."""

    def __init__(self, inner: StorageDriver, tracer: tracing.Tracer, backend: str, scheme: str) -> None:
        self._inner = inner
        self._tracer = tracer
        self._backend = backend
        self._attributes = {"cistern.storage.backend": backend, "cistern.storage.driver": scheme}

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        if name in _TRACED:
            method = partial(self._call, name, method)
            setattr(self, name, method)  # the next call finds it without coming here
        return method

    async def _call(
        self, name: str, method: Callable[..., Awaitable[object]], *args: object, **options: object
    ) -> object:
        operation = {"cistern.storage.operation": name}
        with self._tracer.inner(f"{name} {self._backend}", self._attributes | operation):
            return await method(*args, **options)
