"""A growth has exactly one form, and its target is never smaller than the volume or above the size limit."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.errors import Invalid, ShrinkRefused, SizeLimitExceeded
from domain.volumes.model import BLOCK_BYTES, MAX_SIZE, Growth, rounded_up

sizes = st.integers(min_value=1, max_value=MAX_SIZE)
growths = st.one_of(
    st.builds(Growth, to=st.integers(min_value=1)),
    st.builds(Growth, by=st.integers(min_value=1)),
    st.builds(Growth, percent=st.floats(min_value=0, exclude_min=True, allow_nan=False, allow_infinity=False)),
)


@given(growth=growths, size=sizes)
def test_target_never_shrinks_volume_or_exceeds_limit(growth: Growth, size: int) -> None:
    try:
        target = growth.target(size)
    except (ShrinkRefused, SizeLimitExceeded):
        return

    assert size <= target <= MAX_SIZE
    assert target % BLOCK_BYTES == 0


@given(size=sizes, to=st.integers(min_value=1, max_value=MAX_SIZE))
def test_to_is_the_new_size_rounded_up(size: int, to: int) -> None:
    if rounded_up(to) < size:
        with pytest.raises(ShrinkRefused) as refused:
            Growth(to=to).target(size)
        assert refused.value.details == {"field": "to", "size": size}
    else:
        assert Growth(to=to).target(size) == rounded_up(to)


@given(size=st.integers(1, MAX_SIZE // 2), by=st.integers(1, MAX_SIZE // 2))
def test_by_is_added_to_current_size(size: int, by: int) -> None:
    assert Growth(by=by).target(size) == rounded_up(size + by)


@given(size=st.integers(1, 2**40), percent=st.integers(1, 1000))
def test_percent_of_current_size_is_added_and_rounded_up(size: int, percent: int) -> None:
    asked = size + Fraction(size * percent, 100)

    assert Growth(percent=percent).target(size) == rounded_up(math.ceil(asked))
    assert 0 <= Growth(percent=percent).target(size) - asked < BLOCK_BYTES


@pytest.mark.parametrize(
    ("percent", "blocks"), [(0.5, 1005), (0.1, 1001), (0.01, 1001), (110.0, 2100), (1e-300, 1001), (32.9, 1329)]
)
def test_percentage_is_computed_from_its_decimal_text(percent: float, blocks: int) -> None:
    assert Growth(percent=percent).target(1000 * BLOCK_BYTES) == blocks * BLOCK_BYTES


@pytest.mark.parametrize("growth", [Growth(to=MAX_SIZE + 1), Growth(by=MAX_SIZE), Growth(percent=1e300)])
def test_target_above_limit_is_refused_with_the_limit(growth: Growth) -> None:
    with pytest.raises(SizeLimitExceeded) as refused:
        growth.target(2**46)

    assert refused.value.details["limit"] == MAX_SIZE


def test_target_at_limit_is_allowed() -> None:
    assert Growth(to=MAX_SIZE).target(1) == MAX_SIZE
    assert Growth(by=1).target(MAX_SIZE - 1) == MAX_SIZE


def test_growth_to_current_size_is_allowed() -> None:
    assert Growth(to=8192).target(8192) == 8192


@pytest.mark.parametrize(
    ("growth", "target"), [(Growth(to=1000), 4096), (Growth(by=1), 4096), (Growth(percent=33), 4096)]
)
def test_volume_of_an_odd_size_grows_to_whole_blocks(growth: Growth, target: int) -> None:
    assert growth.target(1000) == target


@pytest.mark.parametrize("members", [{}, {"to": 1, "by": 1}, {"to": 1, "percent": 1}, {"to": 1, "by": 1, "percent": 1}])
def test_exactly_one_member_is_required(members: dict[str, int]) -> None:
    with pytest.raises(Invalid, match="exactly one of"):
        Growth(**members)


@pytest.mark.parametrize("value", [0, -1, -(2**63)])
@pytest.mark.parametrize("name", ["to", "by", "percent"])
def test_zero_and_negative_values_are_refused(name: str, value: int) -> None:
    with pytest.raises(Invalid, match="must be a positive number") as refused:
        Growth(**{name: value})

    assert refused.value.details == {"field": name}


@pytest.mark.parametrize("percent", [math.nan, math.inf, -math.inf])
def test_percentage_that_is_not_finite_is_refused(percent: float) -> None:
    with pytest.raises(Invalid) as refused:
        Growth(percent=percent)

    assert refused.value.details == {"field": "percent"}
