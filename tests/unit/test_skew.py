"""What the reports of sent records tell of the brokers' clock."""

import pytest

from saga_processors.machine import DeadlinePassed, Verdict
from saga_processors.machines import Machine, advance
from saga_processors.saga import SagaStarted
from saga_processors.skew import Skew
from saga_processors.transaction import TransactionStarted
from tests.unit.saga_samples import sequence
from tests.unit.transaction_samples import transaction_of

ROUND_TRIPS = ((1_000.0, 1_000.4, 1_000.5), (1_001.0, 1_001.01, 1_001.02), (1_002.0, 1_002.1, 1_032.0))


@pytest.mark.parametrize("ahead", [-3600.0, -0.005, 0.0, 0.005, 3600.0])
def test_what_is_certain_is_never_more_than_the_truth_but_for_a_round_trip(ahead: float) -> None:
    skew = Skew()
    assert not skew.known(1_000.0) and skew.certain == 0
    for sent, appended, told in ROUND_TRIPS:
        skew.observe(sent, told, appended + ahead)
        assert skew.known(told)
        assert abs(skew.certain) <= abs(ahead), "never corrected too far"
    assert abs(skew.certain - ahead) <= 0.02 + 1e-6
    assert skew.certain * ahead >= 0


def test_clocks_that_may_agree_are_left_alone_however_slow_the_brokers_are() -> None:
    skew = Skew()
    skew.observe(1_000.0, 1_029.0, 1_014.0)
    assert skew.known(1_029.0) and skew.certain == 0


def test_a_measurement_is_kept_for_a_minute() -> None:
    skew = Skew()
    skew.observe(1_000.0, 1_000.01, 4_600.0)
    assert skew.known(1_060.0) and not skew.known(1_061.0)
    skew.observe(1_061.0, 1_066.0, 1_063.0)
    assert skew.certain == 0, "the older one, of a shorter round trip, no longer counts"


@pytest.mark.parametrize("begun", [SagaStarted(sequence("a", timeout_ms=100)), TransactionStarted(transaction_of("a"))])
def test_the_deadline_that_measures_says_nothing_to_a_machine(begun: SagaStarted | TransactionStarted) -> None:
    machine: Machine | None = advance(None, begun, 1_000).machine
    assert machine is not None and machine.next_deadline is not None
    for at in (1_001, 10_000_000):
        decision = advance(machine, DeadlinePassed(0), at)
        assert (decision.machine, decision.effects, decision.verdict) == (machine, (), Verdict.IGNORED)
