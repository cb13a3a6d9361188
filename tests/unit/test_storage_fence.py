"""The order of attempts, over histories that nobody would think of."""

import asyncio
import tempfile
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.errors import StorageError
from domain.storage.backends import open_driver
from domain.storage.driver import Fence, FenceRefused, Grant, StorageDriver
from domain.storage.fence import refuse_stale

OPERATIONS = st.sampled_from(["create", "expand", "delete", "seal"])
HISTORIES = st.lists(
    st.tuples(OPERATIONS, st.builds(Fence, st.integers(0, 3), st.integers(0, 3)), st.integers(1, 9)),
    max_size=12,
)
History = list[tuple[str, Fence, int]]


class Ledger(Grant):
    """A grant that writes what it published into a list shared by all."""

    def __init__(self, fence: Fence, published: list[Fence]) -> None:
        super().__init__(uuid4(), fence, deadline=1.0, clock=lambda: 0.0)
        self._published = published

    def published(self, operation: str, volume_id: UUID) -> None:
        self._published.append(self.fence)


async def replay(driver: StorageDriver, history: History) -> tuple[list[object], list[Fence]]:
    """Answer what each step came to (a size, None, or an error's code), and all fences published."""
    volume, outcomes = uuid4(), list[object]()
    published: list[Fence] = []
    for operation, fence, size in history:
        sized = (size * 4096,) if operation in ("create", "expand") else ()
        try:
            outcomes.append(await getattr(driver, operation)(volume, *sized, Ledger(fence, published)))
        except StorageError as error:
            outcomes.append(error.code)
    await driver.close()
    return outcomes, published


@given(HISTORIES)
@settings(deadline=None)
def test_published_fences_never_decrease(history: History) -> None:
    _, published = asyncio.run(replay(open_driver("memory:", 1), history))

    assert published == sorted(published)


@given(HISTORIES)
@settings(deadline=None)
def test_an_attempt_is_refused_exactly_when_a_higher_one_came_before(history: History) -> None:
    outcomes, _ = asyncio.run(replay(open_driver("memory:", 1), history))

    fences = [fence for _, fence, _ in history]
    late = [fence < max(fences[: step + 1]) for step, fence in enumerate(fences)]
    assert [outcome == "fence-refused" for outcome in outcomes] == late


@given(HISTORIES)
@settings(deadline=None, max_examples=30)
def test_memory_and_disk_tell_the_same_history(history: History) -> None:
    with tempfile.TemporaryDirectory() as root:
        on_disk = asyncio.run(replay(open_driver(f"file:{root}", 1), history))

    assert on_disk == asyncio.run(replay(open_driver("memory:", 1), history))


def test_the_first_attempt_is_never_late() -> None:
    refuse_stale(None, Fence(0, 0))


def test_the_refusal_names_both_attempts() -> None:
    with pytest.raises(FenceRefused, match=r"\(2, 9\).*\(3, 1\)"):
        refuse_stale(Fence(3, 1), Fence(2, 9))
