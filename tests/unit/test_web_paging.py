"""The size of a page, and the way to the next one."""

import pytest

from coordinator.models import ListQuery
from web.paging import next_page, page_limit
from web.problems import Malformed


def test_a_page_has_the_usual_size_unless_another_one_within_the_limit_is_asked_for() -> None:
    assert [page_limit(wanted, 50, 500) for wanted in (None, 1, 500)] == [50, 1, 500]
    with pytest.raises(Malformed):
        page_limit(501, 50, 500)


def test_the_next_page_keeps_the_filters_and_moves_the_cursor() -> None:
    query = ListQuery.model_validate({"name": "s", "state": ["FAILED", "COMPLETED"], "limit": 2, "cursor": "old"})
    assert next_page("/sagas", query, "new") == "/sagas?name=s&state=FAILED&state=COMPLETED&limit=2&cursor=new"
    assert next_page("/sagas", query, None) is None
