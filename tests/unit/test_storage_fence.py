"""The order of attempts, checked over histories that Hypothesis generates."""

import asyncio
import tempfile
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.errors import StorageError
from domain.storage.backends import open_driver
from domain.storage.context import Fence, Grant, refuse_stale
from domain.storage.driver import StorageDriver, Taken
from domain.storage.errors import FenceRefused
from tests.unit.storage_builders import opened

VOLUME, SNAPSHOT, CLONE = (UUID(f"01890000-0000-7000-8000-00000000000{last}") for last in "123")
# For each operation: the ids it is called with, the subject whose fence it checks, and whether it takes a size.
OPERATIONS = {
    "create": ((VOLUME,), VOLUME, True),
    "expand": ((VOLUME,), VOLUME, True),
    "delete": ((VOLUME,), VOLUME, False),
    "seal": ((VOLUME,), VOLUME, False),
    "take_snapshot": ((VOLUME, SNAPSHOT), SNAPSHOT, False),
    "restore_snapshot": ((VOLUME, SNAPSHOT), VOLUME, False),
    "clone_snapshot": ((VOLUME, SNAPSHOT, CLONE), CLONE, True),
    "delete_snapshot": ((VOLUME, SNAPSHOT), SNAPSHOT, False),
    "seal_snapshot": ((VOLUME, SNAPSHOT), SNAPSHOT, False),
}
# A missing source is detected before the lock is taken, so these outcomes do not raise the fence.
FENCE_NOT_RAISED = {("take_snapshot", "volume-missing"), *((name, "snapshot-missing") for name in OPERATIONS)}
FENCES = st.builds(Fence, st.integers(0, 3), st.integers(0, 3))
HISTORIES = st.lists(st.tuples(st.sampled_from(sorted(OPERATIONS)), FENCES, st.integers(1, 9)), max_size=14)
History = list[tuple[str, Fence, int]]
Published = list[tuple[UUID, Fence]]


class SharedRecordGrant(Grant):
    """A grant that appends what it published to a list shared by all grants."""

    def __init__(self, fence: Fence, published: Published) -> None:
        super().__init__(uuid4(), fence, deadline=1.0, clock=lambda: 0.0)
        self._published = published

    def on_published(self, operation: str, subject_id: UUID) -> None:
        self._published.append((subject_id, self.fence))


async def replay(driver: StorageDriver, history: History) -> tuple[list[object], Published]:
    """Return the outcome of each step (a size, None, or an error's code), and all published fences."""
    outcomes, published = list[object](), Published()
    for operation, fence, size in history:
        ids, _, sized = OPERATIONS[operation]
        sizes = (size * 4096,) if sized else ()
        try:
            found = await getattr(driver, operation)(*ids, *sizes, SharedRecordGrant(fence, published))
            outcomes.append(found.size if isinstance(found, Taken) else found)
        except StorageError as error:
            outcomes.append(error.code)
    await driver.close()
    return outcomes, published


@given(HISTORIES)
@settings(deadline=None, max_examples=60)
def test_published_fences_of_one_subject_never_decrease(history: History) -> None:
    _, published = asyncio.run(replay(open_driver("memory:", 1), history))

    for subject in (VOLUME, SNAPSHOT, CLONE):
        fences = [fence for subject_id, fence in published if subject_id == subject]
        assert fences == sorted(fences)


@given(HISTORIES)
@settings(deadline=None, max_examples=60)
def test_attempt_is_refused_if_and_only_if_a_higher_fence_came_before(history: History) -> None:
    outcomes, _ = asyncio.run(replay(open_driver("memory:", 1), history))

    highest: dict[UUID, Fence] = {}
    for (operation, fence, _), outcome in zip(history, outcomes, strict=True):
        subject = OPERATIONS[operation][1]
        last = highest.get(subject, fence)
        assert (outcome == "fence-refused") == (fence < last)
        if (operation, outcome) not in FENCE_NOT_RAISED:
            highest[subject] = max(fence, last)


@given(HISTORIES)
@settings(deadline=None, max_examples=20)
def test_memory_and_file_driver_produce_the_same_history(history: History) -> None:
    with tempfile.TemporaryDirectory() as root:
        on_disk = asyncio.run(replay(opened(f"file:{root}", 1), history))

    assert on_disk == asyncio.run(replay(open_driver("memory:", 1), history))


def test_first_attempt_is_never_stale() -> None:
    refuse_stale(None, Fence(0, 0))


def test_refusal_names_both_fences() -> None:
    with pytest.raises(FenceRefused, match=r"\(2, 9\).*\(3, 1\)"):
        refuse_stale(Fence(3, 1), Fence(2, 9))
