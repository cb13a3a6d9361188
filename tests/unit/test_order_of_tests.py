"""The order of the tests: slow ones first, if several processes run them."""

from collections.abc import Sequence

import pytest

from tests.conftest import pytest_collection_modifyitems
from tests.support.order import slow_tests_first

#: The tests of two processes in the order of their files; those with an S are slow.
COLLECTED = ("a", "b", "S1", "c", "d", "S2", "S3")
#: As two processes run them: pytest-xdist gives the first one the first three, and the second one the other four.
SLOW_FIRST = ["S1", "S3", "a", "S2", "b", "c", "d"]


def items_of(request: pytest.FixtureRequest, names: Sequence[str]) -> list[pytest.Item]:
    items: list[pytest.Item] = []
    for name in names:
        item = pytest.Function.from_parent(request.node.parent, name=name, callobj=lambda: None)
        if name.startswith("S"):
            item.add_marker("slow")
        items.append(item)
    return items


def test_share_of_each_process_begins_with_its_part_of_the_slow_tests(request: pytest.FixtureRequest) -> None:
    ordered = slow_tests_first(items_of(request, COLLECTED), processes=2)

    assert [item.name for item in ordered] == SLOW_FIRST


@pytest.mark.parametrize(("processes", "expected"), [(None, list(COLLECTED)), ("2", SLOW_FIRST)])
def test_only_a_run_with_xdist_changes_the_order(
    processes: str | None, expected: list[str], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTEST_XDIST_WORKER_COUNT", raising=False)
    if processes is not None:
        monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", processes)
    items = items_of(request, COLLECTED)

    pytest_collection_modifyitems(items)

    assert [item.name for item in items] == expected
