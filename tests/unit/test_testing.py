"""The test kit: it passes what is right, and tells well what is not."""

import pytest

from fluxora.testing import SagaTest
from participant import sagas
from participant.definitions import Definition, HttpStep, Retry, Step, saga_input

SLOW = Retry(max_attempts=3, initial_delay_seconds=1, max_delay_seconds=10, multiplier=2, jitter=0)
reserve = Step("reserve", service="stock", payload={"item": saga_input.item})
pay = Step("pay", service="billing", payload={"order": reserve.result.order_id}, retry=SLOW, timeout_seconds=5)
order = Definition("order", "1", [reserve, pay], timeout_seconds=100)


def begun() -> SagaTest:
    t = SagaTest(order, input={"item": "pen"})
    t.expect("reserve", payload={"item": "pen"})
    t.reply("reserve", {"order_id": 7})
    t.expect("pay", payload={"order": 7}, attempt=1)
    return t


def test_a_saga_that_completes() -> None:
    with begun() as t:
        t.reply("pay")
        t.expect_completed()
        assert t.state == "COMPLETED"
        assert t.step_state("pay") == "EXECUTED"


def test_a_refusal_is_undone_in_reverse_order() -> None:
    with begun() as t:
        t.refuse("pay", "no funds")
        t.expect_compensation("reserve")
        t.reply_compensation("reserve")
        t.expect_failed("no funds")


def test_a_failure_is_tried_again_after_the_waits_of_the_policy() -> None:
    with begun() as t:
        t.fail("pay", "database away")
        t.expect_retry("pay", after=1)
        t.fail("pay", "database away")
        t.expect_retry("pay", after=2)
        assert t.now == 3
        t.fail("pay", "database away")
        t.expect_compensation("reserve")
        t.fail_compensation("reserve", "not now")
        t.expect_retry("reserve", after=0.5)
        t.reply_compensation("reserve")
        t.expect_failed("database away")


def test_no_answer_is_tried_again_and_a_late_answer_still_counts() -> None:
    with begun() as t:
        t.no_answer("pay")
        assert t.now == 5
        t.expect_retry("pay", after=1)
        t.reply("pay")
        t.expect_completed()


def test_the_time_of_the_saga_ends_it() -> None:
    with SagaTest(order, input={"item": "pen"}) as t:
        t.expect("reserve")
        t.reply("reserve", {"order_id": 1})
        t.expect("pay")
        t.fail("pay", "away")
        t.advance_time(0.5)
        t.cancel("ada", "changed her mind")
        t.expect_compensation("reserve")
        t.reply_compensation("reserve")
        t.expect_failed()


def test_steps_beside_each_other_answer_in_any_order() -> None:
    left, right = Step("left", service="s", depends_on=()), Step("right", service="s", depends_on=())
    last = Step("last", service="s", depends_on=(left, right), payload=[left.result, right.result])
    with SagaTest(Definition("d", "1", [left, right, last])) as t:
        t.expect("right")
        t.expect("left")
        t.reply("right", "r")
        t.expect_nothing()
        t.reply("left", "l")
        t.expect("last", payload=["l", "r"])
        t.reply("last")
        t.expect_completed()


def test_a_lost_answer_over_http_is_undone_in_doubt() -> None:
    step = HttpStep("book", service="hotel", action="/book", compensation="/cancel", retry=Retry(max_attempts=1))
    with SagaTest(Definition("d", "1", [step])) as t:
        t.expect("book")
        t.lose("book")
        t.expect_compensation("book")
        t.reply_compensation("book")
        t.expect_failed("lost")


def test_plain_steps_and_documents_are_sagas_too() -> None:
    for saga in (
        [sagas.Step("s", name="a", payload={"x": 1})],
        {"name": "d", "steps": [{"service_name": "s", "name": "a", "payload": {"x": 1}}]},
    ):
        with SagaTest(saga) as t:
            t.expect("a", payload={"x": 1})
            t.reply("a")
            t.expect_completed()


def test_operators_skip_and_retry() -> None:
    with begun() as t:
        t.fail("pay", "away")
        t.retry("pay", who="ada", why="it is back")
        t.expect("pay", attempt=2)
        assert t.now == 0
        t.fail("pay", "away")
        t.skip("pay", who="ada", why="paid in cash")
        t.expect_completed()


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda t: t.expect("reserve"), "the action of reserve was not asked for again"),
        (lambda t: t.expect_compensation("reserve"), "the compensation of reserve was not asked for"),
        (lambda t: t.reply("nobody"), "there is no step 'nobody'; there are: reserve, pay"),
        (lambda t: t.reply_compensation("pay"), "the compensation of pay is not under way: the action is"),
        (lambda t: t.expect_completed(), "the saga is EXECUTING, not COMPLETED (reserve EXECUTED, pay EXECUTING)"),
        (lambda t: t.expect_retry("pay"), "pay does not wait for another attempt"),
        (lambda t: t.advance_time(-1), "time does not go back"),
        (lambda t: (t.fail("pay", "x"), t.reply("pay")), "expect_retry('pay')"),
        (lambda t: (t.fail("pay", "x"), t.expect_retry("pay", after=9)), "pay waits 1 s for its next attempt, not 9 s"),
        (lambda t: (t.reply("pay"), t.cancel()), "that is refused"),
        (
            lambda t: (t.refuse("pay", "no"), t.__exit__(None, None, None)),
            "nobody expected the compensation of reserve",
        ),
    ],
)
def test_what_is_wrong_is_told_with_what_happened_so_far(wrong: object, told: str) -> None:
    assert callable(wrong)
    with pytest.raises(AssertionError) as error:
        wrong(begun())
    text = str(error.value)
    assert told in text
    assert "So far:" in text
    assert '→ pay: action, attempt 1 {"order": 7}' in text


def test_a_wrong_payload_is_shown_beside_the_right_one() -> None:
    with pytest.raises(AssertionError, match=r'with \{"item": "pen"\}, not with \{"item": "ink"\}'):
        SagaTest(order, input={"item": "pen"}).expect("reserve", payload={"item": "ink"})
