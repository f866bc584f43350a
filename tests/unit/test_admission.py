"""What is taken on while much waits already."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from tests.unit.test_coordinator_submission import settings
from web.admission import Admission
from web.metrics import RequestMetrics
from web.problems import Unavailable


def admission(max_backlog: int = 3, max_creating: int = 2) -> tuple[Admission, RequestMetrics]:
    metrics = RequestMetrics("sample")
    limits = settings(max_creating=max_creating, overload_retry_seconds=7)
    return Admission(limits, metrics, "things", max_backlog), metrics


def measured(backlog: int) -> Callable[[], Awaitable[int]]:
    async def measurement() -> int:
        return backlog

    return measurement


def create(admitting: Admission) -> None:
    admitting.check()
    with admitting.creating():
        pass


def test_with_too_much_behind_nothing_new_is_admitted_until_it_is_less() -> None:
    admitting, metrics = admission()
    asyncio.run(admitting.measure(measured(3)))
    with pytest.raises(Unavailable) as refused:
        admitting.check()
    assert (refused.value.status, refused.value.slug, refused.value.headers["Retry-After"]) == (503, "overloaded", "7")
    assert "about 3 things; 3 may be" in refused.value.detail
    asyncio.run(admitting.measure(measured(2)))
    create(admitting)
    assert b'sample_refused_total{limit="backlog"} 1.0' in metrics.text()
    assert b"sample_backlog 2.0" in metrics.text()


def test_between_two_measurements_what_was_admitted_counts() -> None:
    admitting, _ = admission()
    asyncio.run(admitting.measure(measured(1)))
    create(admitting)
    create(admitting)
    with pytest.raises(Unavailable):
        admitting.check()
    asyncio.run(admitting.measure(measured(0)))
    create(admitting)


def test_what_is_admitted_during_a_measurement_is_not_forgotten() -> None:
    admitting, _ = admission()

    async def slow() -> int:
        create(admitting)
        create(admitting)
        return 1

    asyncio.run(admitting.measure(slow))
    with pytest.raises(Unavailable):
        admitting.check()


def test_no_more_are_created_at_once_than_may_be() -> None:
    admitting, metrics = admission(max_backlog=100)
    with admitting.creating(), admitting.creating(), pytest.raises(Unavailable):
        admitting.check()
    admitting.check()
    assert b'sample_refused_total{limit="creating"} 1.0' in metrics.text()


def test_a_measurement_that_fails_leaves_the_last_one() -> None:
    admitting, _ = admission()
    asyncio.run(admitting.measure(measured(3)))

    async def fails() -> int:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        asyncio.run(admitting.measure(fails))
    with pytest.raises(Unavailable):
        admitting.check()
