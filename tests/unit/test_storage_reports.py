"""Sizes, uses and fences that a driver reports: those that no volume can have are an error of one volume alone."""

from collections.abc import Collection, Mapping
from typing import Any
from uuid import UUID, uuid4

import pytest

from domain.storage.backends import Backends
from domain.storage.context import MAX_FENCE, Grant
from domain.storage.driver import MAX_STORED_SIZE, StorageDriver, Usage
from domain.storage.errors import FenceRefused, PermanentStorageError
from domain.storage.null import NullDriver
from tests.unit.file_builders import ARGUMENTS, MIB, VOLUME, attempt

OTHER, THIRD = uuid4(), uuid4()
SIZED = sorted(ARGUMENTS.keys() - {"delete", "delete_snapshot"})
IMPOSSIBLE = [0, -1, 2**63, MAX_STORED_SIZE + 1, 4096.0, True, "4096"]


class ReportingDriver(NullDriver):
    """Reports what it is told to, whatever it is asked for."""

    def __init__(self, report: object = None, usages: Mapping[UUID, Usage] | None = None) -> None:
        self._report = report
        self._usages = usages or {}

    def __getattribute__(self, name: str) -> Any:
        if name not in ARGUMENTS:
            return super().__getattribute__(name)

        async def reporting(*_: object) -> object:
            if isinstance(self._report, Exception):
                raise self._report
            return self._report

        return reporting

    async def measure(self, volume_ids: Collection[UUID]) -> Mapping[UUID, Usage]:
        return {id_: usage for id_, usage in self._usages.items() if id_ in volume_ids}


def served(driver: StorageDriver) -> StorageDriver:
    """Return the driver as the domain gets it."""
    return Backends({"one": driver}, {"one": "null"}).get("one")


async def perform(driver: StorageDriver, operation: str, grant: Grant) -> object:
    result: object = await getattr(driver, operation)(*ARGUMENTS[operation], grant)
    return result


@pytest.mark.parametrize("operation", SIZED)
@pytest.mark.parametrize("size", IMPOSSIBLE)
async def test_impossible_size_is_a_permanent_error(operation: str, size: object) -> None:
    with pytest.raises(PermanentStorageError, match="reports an impossible size") as caught:
        await perform(served(ReportingDriver(size)), operation, attempt())

    assert len(caught.value.message) < 100


@pytest.mark.parametrize("operation", SIZED)
@pytest.mark.parametrize("size", [1, MAX_STORED_SIZE])
async def test_smallest_and_largest_size_are_believed(operation: str, size: int) -> None:
    assert await perform(served(ReportingDriver(size)), operation, attempt()) == size


@pytest.mark.parametrize("operation", ["create", "expand", "clone_snapshot"])
async def test_volume_that_is_made_must_have_a_size(operation: str) -> None:
    with pytest.raises(PermanentStorageError, match="impossible size: None"):
        await perform(served(ReportingDriver(None)), operation, attempt())


@pytest.mark.parametrize("operation", ARGUMENTS)
@pytest.mark.parametrize("stored", [(2**60, 1), (1, 2**63), (-1, 0), (1.5, 0)])
async def test_impossible_fence_is_a_permanent_error(operation: str, stored: Any) -> None:
    with pytest.raises(PermanentStorageError, match="impossible fence"):
        await perform(served(ReportingDriver(FenceRefused(stored=stored))), operation, attempt())


@pytest.mark.parametrize("stored", [None, (1, 0), (MAX_FENCE, MAX_FENCE)])
async def test_possible_fence_is_passed_on(stored: tuple[int, int] | None) -> None:
    with pytest.raises(FenceRefused) as caught:
        await perform(served(ReportingDriver(FenceRefused(stored=stored))), "expand", attempt())

    assert caught.value.stored == stored


async def test_volumes_with_an_impossible_size_or_use_count_as_not_measured() -> None:
    good = {OTHER: Usage(MIB, None), THIRD: Usage(MIB, 0)}
    for bad in (Usage(0, 0), Usage(2**63, 0), Usage(MIB, -1), Usage(MIB, 2**63), Usage(MIB, 1.5)):  # type: ignore[arg-type]
        driver = served(ReportingDriver(usages={**good, VOLUME: bad}))

        assert await driver.measure([VOLUME, OTHER, THIRD]) == good
