"""Cursors lead from page to page of one list, and nowhere else."""

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
def test_a_cursor_leads_to_where_the_page_ended(scope: str, key: UUID) -> None:
    page = PageRequest(scope, limit=1).page([Worker(id=key), Worker(id=UUID(int=0))])

    assert PageRequest(scope, cursor=page.next_cursor).before == key


def test_the_first_page_starts_at_the_newest() -> None:
    assert PageRequest("jobs").before is None


def test_one_row_more_than_asked_for_means_another_page() -> None:
    page = PageRequest("jobs", limit=2).page(rows(9, 8, 7))

    assert [row.id.int for row in page.items] == [9, 8]
    assert PageRequest("jobs", cursor=page.next_cursor).before == UUID(int=8)


@pytest.mark.parametrize("numbers", [(), (9,), (9, 8)])
def test_the_last_page_has_no_cursor(numbers: tuple[int, ...]) -> None:
    page = PageRequest("jobs", limit=2).page(rows(*numbers))

    assert page.next_cursor is None
    assert len(page.items) == len(numbers)


@pytest.mark.parametrize("scope", ["volumes", "jobs?status=failed", "jobs ", ""])
def test_a_cursor_of_another_list_or_with_other_filters_is_refused(scope: str) -> None:
    with pytest.raises(BadCursor) as refused:
        _ = PageRequest(scope, cursor=cursor_for("jobs", 9)).before

    assert refused.value.details == {"field": "cursor"}


@given(garbage=st.text())
def test_garbage_is_refused(garbage: str) -> None:
    with pytest.raises(BadCursor):
        _ = PageRequest("jobs", cursor=garbage).before


@given(raw=st.binary(max_size=64))
def test_garbage_in_the_form_of_a_cursor_is_refused(raw: bytes) -> None:
    with pytest.raises(BadCursor):
        _ = PageRequest("jobs", cursor=urlsafe_b64encode(raw).decode()).before


@given(cut=st.integers(min_value=1, max_value=31))
def test_half_a_cursor_is_refused(cut: int) -> None:
    with pytest.raises(BadCursor):
        _ = PageRequest("jobs", cursor=cursor_for("jobs", 9)[:cut]).before


def test_a_cursor_can_stand_in_a_url_as_it_is() -> None:
    assert set(cursor_for("jobs", 2**127 - 1)) <= set(
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_="
    )
