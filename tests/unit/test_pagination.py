"""A cursor leads to the next page of its own list, and is refused by any other."""

from base64 import urlsafe_b64encode
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.db.pagination import PageRequest
from domain.errors import BadCursor
from domain.jobs.model import Worker


def rows(*numbers: int) -> list[Worker]:
    return [Worker(id=UUID(int=number)) for number in numbers]


def cursor_for(scope: str, last: int) -> str:
    cursor = PageRequest(scope, limit=1).page(rows(last, last - 1)).next_cursor
    assert cursor is not None
    return cursor


@given(scope=st.text(), key=st.uuids())
def test_cursor_encodes_the_last_id_of_its_page(scope: str, key: UUID) -> None:
    page = PageRequest(scope, limit=1).page([Worker(id=key), Worker(id=UUID(int=0))])

    assert PageRequest(scope, cursor=page.next_cursor).before == key


def test_first_page_has_no_start_id() -> None:
    assert PageRequest("jobs").before is None


def test_one_row_beyond_the_limit_means_another_page() -> None:
    page = PageRequest("jobs", limit=2).page(rows(9, 8, 7))

    assert [row.id.int for row in page.items] == [9, 8]
    assert PageRequest("jobs", cursor=page.next_cursor).before == UUID(int=8)


@pytest.mark.parametrize("numbers", [(), (9,), (9, 8)])
def test_last_page_has_no_cursor(numbers: tuple[int, ...]) -> None:
    page = PageRequest("jobs", limit=2).page(rows(*numbers))

    assert page.next_cursor is None
    assert len(page.items) == len(numbers)


@pytest.mark.parametrize("scope", ["volumes", "jobs?status=failed", "jobs ", ""])
def test_cursor_of_another_list_or_other_filters_is_refused(scope: str) -> None:
    with pytest.raises(BadCursor) as refused:
        _ = PageRequest(scope, cursor=cursor_for("jobs", 9)).before

    assert refused.value.details == {"field": "cursor"}


@given(garbage=st.text())
def test_random_text_is_refused(garbage: str) -> None:
    with pytest.raises(BadCursor):
        _ = PageRequest("jobs", cursor=garbage).before


@given(raw=st.binary(max_size=64))
def test_random_bytes_in_base64_are_refused(raw: bytes) -> None:
    with pytest.raises(BadCursor):
        _ = PageRequest("jobs", cursor=urlsafe_b64encode(raw).decode()).before


@given(cut=st.integers(min_value=1, max_value=31))
def test_truncated_cursor_is_refused(cut: int) -> None:
    with pytest.raises(BadCursor):
        _ = PageRequest("jobs", cursor=cursor_for("jobs", 9)[:cut]).before


def test_cursor_needs_no_url_escaping() -> None:
    assert set(cursor_for("jobs", 2**127 - 1)) <= set(
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_="
    )
