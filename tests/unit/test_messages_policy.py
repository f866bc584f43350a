"""When a message is attempted again, and how many attempts a destination may have."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox_relay.messages.policy import FAILING_PAUSE_SECONDS, RetryPolicy, Slots

POLICY = RetryPolicy(max_attempts=5, initial_seconds=1, multiplier=2, longest_seconds=6, jitter=0)


def test_waits_grow_up_to_the_longest_and_end_with_the_last_attempt() -> None:
    assert [POLICY.wait_after(n, "m") for n in range(1, 6)] == [1, 2, 4, 6, None]


@given(st.integers(1, 10_000), st.text(max_size=40), st.floats(0, 1))
def test_jitter_only_shortens_and_is_the_same_for_the_same_message(failures: int, seed: str, jitter: float) -> None:
    policy = RetryPolicy(20_000, 0.5, 10, 30, jitter)
    plain = RetryPolicy(20_000, 0.5, 10, 30, 0).wait_after(failures, seed)
    wait = policy.wait_after(failures, seed)
    assert wait is not None and plain is not None
    assert plain * (1 - jitter) - 1e-9 <= wait <= plain <= 30
    assert wait == policy.wait_after(failures, seed)


def test_messages_that_failed_together_do_not_come_back_together() -> None:
    policy = RetryPolicy(5, 1, 2, 6, 0.5)
    assert len({policy.wait_after(1, str(n)) for n in range(100)}) > 90


def places(slots: Slots, name: str, now: float = 0.0) -> int:
    limits, usual = slots.limits(now)
    return limits.get(name, usual)


def fill(slots: Slots, name: str, now: float = 0.0) -> int:
    """Begin as many as there is place for; returns how many."""
    count = min(places(slots, name, now), slots.free)
    for _ in range(count):
        slots.begin(name)
    return count


@given(st.integers(4, 200), st.integers(1, 50), st.integers(1, 60))
def test_there_is_always_a_place_for_one_more_destination(total: int, each: int, destinations: int) -> None:
    slots = Slots(total, each)
    for n in range(min(destinations, total // 2)):
        assert fill(slots, f"slow-{n}") >= 1
        # Those with more than their share give places back as their attempts end, and take no new ones.
        for m in range(n + 1):
            while slots._busy.get(f"slow-{m}", 0) > max(1, total // (n + 2)):
                slots.end(f"slow-{m}", failed=None, now=0)
    assert slots.free >= 1
    assert places(slots, "new") >= 1


def test_a_destination_that_fails_gets_fewer_places_and_earns_them_back() -> None:
    slots = Slots(1000, 16)
    now = 0.0
    for expected in (8, 4, 2, 1, 1):
        slots.begin("dead")
        slots.end("dead", failed=True, now=now)
        now += 2 * FAILING_PAUSE_SECONDS
        assert places(slots, "dead", now) == expected
    slots.begin("dead")
    slots.end("dead", failed=True, now=now)
    assert places(slots, "dead", now) == 0
    assert slots.pause_ends(now) == pytest.approx(FAILING_PAUSE_SECONDS)
    for expected in (*range(2, 16), 16, 16):
        slots.begin("dead")
        slots.end("dead", failed=False, now=now)
        assert places(slots, "dead", now) == expected
    assert places(slots, "other", now) == 16


def test_an_attempt_that_says_nothing_about_its_destination_changes_nothing() -> None:
    slots = Slots(100, 4)
    slots.begin("a")
    assert (slots.in_flight, places(slots, "a")) == (1, 3)
    slots.end("a", failed=None, now=0)
    assert (slots.in_flight, places(slots, "a")) == (0, 4)
