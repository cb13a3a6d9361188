"""What a snapshot is worth, and when one that would be torn is refused."""

import math
from contextlib import suppress
from uuid import UUID, uuid4

import pytest

from domain.storage.consistency import Consistency, consistency_of, take_snapshot
from domain.storage.context import Fence, Grant
from domain.storage.driver import Taken
from domain.storage.errors import SnapshotTorn
from domain.storage.memory import MemoryDriver

A, R, C = Consistency.APPLICATION, Consistency.CRASH, Consistency.COPIED
#: By whether the blocks are shared, whether it was open (None: nobody can tell), and whether it was frozen.
WORTH = {
    (True, False, False): A,
    (True, True, False): R,
    (True, None, False): R,
    (False, False, False): A,
    (False, True, False): C,
    (False, None, False): C,
    **{(shared, was_open, True): A for shared in (True, False) for was_open in (True, False, None)},
}


@pytest.mark.parametrize(("found", "worth"), WORTH.items())
def test_consistency_follows_from_what_the_driver_and_the_node_have_found(
    found: tuple[bool, bool | None, bool], worth: Consistency
) -> None:
    shared, was_open, frozen = found

    assert consistency_of(shared=shared, was_open=was_open, frozen=frozen) is worth


class OpenDriver(MemoryDriver):
    """A driver that reports the same of every snapshot."""

    def __init__(self, *, shared: bool, was_open: bool | None) -> None:
        super().__init__()
        self.taken = Taken(None, shared, was_open)
        self.allowed: list[bool] = []

    async def take_snapshot(
        self, volume_id: UUID, snapshot_id: UUID, grant: Grant, *, allow_torn: bool = True
    ) -> Taken:
        self.allowed.append(allow_torn)
        found = await super().take_snapshot(volume_id, snapshot_id, grant)
        return self.taken._replace(size=found.size)


async def taken_of(driver: OpenDriver, *, allow_torn: bool, attached: bool) -> tuple[Consistency | None, bool]:
    """Take a snapshot; return what it is worth, None if it is refused, and whether it is stored."""
    volume, snapshot, worth = uuid4(), uuid4(), None
    grant = Grant(uuid4(), Fence(1, 0), math.inf)
    await driver.create(volume, 4096, grant)
    with suppress(SnapshotTorn):
        worth = (
            await take_snapshot(driver, volume, snapshot, grant, allow_torn=allow_torn, attached=attached)
        ).consistency
    stored = await driver.stat(volume, [snapshot])
    assert driver.allowed == [allow_torn]
    return worth, stored.snapshots[snapshot].size is not None


@pytest.mark.parametrize(
    ("shared", "was_open", "attached", "allow_torn", "expected"),
    [
        (True, False, False, False, (A, True)),
        (True, False, True, False, (R, True)),
        (False, False, False, False, (A, True)),
        (False, False, True, False, (None, False)),
        (False, False, True, True, (C, True)),
        (False, None, False, True, (C, True)),
    ],
)
async def test_copy_of_an_attached_volume_is_refused_and_removed_unless_it_may_be_torn(
    *,
    shared: bool,
    was_open: bool,
    attached: bool,
    allow_torn: bool,
    expected: tuple[Consistency | None, bool],
) -> None:
    driver = OpenDriver(shared=shared, was_open=was_open)

    assert await taken_of(driver, allow_torn=allow_torn, attached=attached) == expected
