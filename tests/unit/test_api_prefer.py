"""The `wait` preference of RFC 7240, in every spelling."""

import pytest

from api.acceptance import preferred_wait


@pytest.mark.parametrize(
    ("prefer", "seconds"),
    [
        (["wait=10"], 10),
        (["Wait = 10"], 10),
        (['wait="10"'], 10),
        (["wait=10; foo=bar"], 10),
        (["respond-async, wait=10"], 10),
        (["respond-async", "wait=10"], 10),
        (["wait=10, wait=20"], 10),
        (["wait=0"], 0),
        (["wait=31"], 30),
        (["wait=999999999"], 30),
    ],
)
def test_wait_preference_is_parsed(prefer: list[str], seconds: int) -> None:
    assert preferred_wait(prefer) == seconds


@pytest.mark.parametrize(
    "prefer",
    [
        *("", "wait", "wait=", "wait=-1", "wait=1.5", "wait=soon", 'wait="5', "waiting=5", "return=minimal"),
        'foo="a, wait=5"',  # a comma inside quotes
        "wait=\u0665",  # a digit of another script
        "wait=" + "9" * 5000,  # more digits than Python would read
    ],
    ids=lambda prefer: ascii(prefer)[:30],
)
def test_invalid_preference_is_ignored(prefer: str) -> None:
    assert preferred_wait([prefer]) is None
