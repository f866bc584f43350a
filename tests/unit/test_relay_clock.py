"""What the relay makes of the brokers' clock."""

import pytest

from outbox_relay.clock import BrokerClock


@pytest.mark.parametrize("ahead", [-30.0, 0.0, 30.0])
def test_the_brokers_clock_is_known_to_the_shortest_round_trip_and_never_thought_early(ahead: float) -> None:
    now = 1_000.0
    clock = BrokerClock(lambda: now)
    for sent, arrived, told in (
        (1_000.0, 1_000.4, 1_000.5),
        (1_001.0, 1_001.01, 1_001.02),
        (1_002.0, 1_002.1, 1_002.9),
    ):
        clock.observe(sent, told, arrived + ahead)
        now = told
        assert now + ahead <= clock.now()
    assert clock.now() <= now + ahead + 0.02


def test_a_clock_that_was_set_is_seen_after_a_minute() -> None:
    now = 1_000.0
    clock = BrokerClock(lambda: now)
    clock.observe(1_000.0, 1_000.01, 1_000.0)
    clock.observe(1_001.0, 1_001.02, 1_006.0)
    assert clock.now() == now, "the shorter round trip says it better"
    clock.observe(1_061.0, 1_061.02, 1_066.0)
    assert clock.now() == now + 5


@pytest.mark.parametrize("told", [999.0, 1_002.0], ids=["set back in between", "too long"])
def test_a_round_trip_that_says_nothing_is_left_out(told: float) -> None:
    clock = BrokerClock(lambda: 1_000.0)
    clock.observe(1_000.0, told, 2_000.0)
    assert clock.now() == 1_000.0
