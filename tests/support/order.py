"""The order in which several processes run the tests: those marked ``slow`` first, an equal number in each process.

With ``--dist worksteal`` of pytest-xdist, each process begins with a contiguous share of all tests, and one that has
finished its own takes tests from the end of another's. A slow test near the end of a share would start last, and keep
one process busy when the others have nothing left to take.
"""

from collections.abc import Sequence

import pytest


def slow_tests_first(items: Sequence[pytest.Item], processes: int) -> list[pytest.Item]:
    """Return the tests in an order in which the share of each process begins with its part of the slow ones."""
    slow = [item for item in items if item.get_closest_marker("slow")]
    others = [item for item in items if not item.get_closest_marker("slow")]
    places = _from_the_heads_of_shares(len(items), processes)
    heads, rest = places[: len(slow)], sorted(places[len(slow) :])
    ordered = dict(zip([*heads, *rest], [*slow, *others], strict=True))
    return [ordered[place] for place in range(len(items))]


def _from_the_heads_of_shares(count: int, processes: int) -> list[int]:
    """Return all places: the first of each share, then the second of each, and so on."""
    within_share: list[int] = []
    for number in range(processes):
        within_share += range((count - len(within_share)) // (processes - number))  # as pytest-xdist computes it
    return sorted(range(count), key=within_share.__getitem__)
