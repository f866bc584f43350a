"""The whole platform in virtual time, with fresh seeds; CONTRIBUTING.md says how to replay one that failed."""

import logging
import os

import pytest

from tests.simulation.history import Violation
from tests.simulation.running import quietly, simulate
from tests.simulation.services import LocalDatabase, Resources
from tests.simulation.world import World

#: Of the everyday run; ``make simulate SECONDS=600`` takes longer.
SECONDS = float(os.environ.get("FLUXORA_SIMULATION_SECONDS", "20"))

_HOUR = 3_600_000


def test_whatever_is_lost_doubled_delayed_or_killed_everything_comes_to_one_right_end() -> None:
    run = simulate(SECONDS)
    logging.getLogger("simulation").warning("%s", run)
    assert run.found is None, str(run.found)


def longest_with_a_clock_off_by(lag: int) -> int:
    longest = 0
    with quietly():
        for seed in range(60):
            world = World(seed)
            world.set_clock(lag)
            world.run()
            longest = max(longest, world.schedule.now)
    return longest


def test_a_deadline_clock_that_is_an_hour_behind_and_never_finds_out_breaks_no_rule() -> None:
    assert longest_with_a_clock_off_by(_HOUR) > _HOUR, "late timers make long worlds"


def test_one_that_is_an_hour_ahead_must_find_out() -> None:
    """It would undo actions over HTTP that still run: ``saga_processors.clock`` goes by the brokers' clock."""
    with pytest.raises(Violation, match="all that ran is undone"):
        longest_with_a_clock_off_by(-_HOUR)


def test_the_model_of_a_participant_keeps_the_table_of_two_phase() -> None:
    """Row by row: the table in ``participant.two_phase``."""
    told: dict[tuple[str, str], str] = {}
    for known in ("nothing", "PREPARED", "COMMITTED", "ABORTED"):
        for asked in ("prepare", "commit", "abort"):
            model = Resources("bank", LocalDatabase())
            if known in ("PREPARED", "COMMITTED"):
                assert model.prepare_payload("t", {"resources": ["a"]})
            if known == "COMMITTED":
                model.commit("t")
            if known == "ABORTED":
                model.abort("t")
            try:
                if asked == "prepare":
                    answer = "yes" if model.prepare_payload("t", {"resources": ["a"]}) else "no"
                else:
                    answer = str(getattr(model, asked)("t") or "done")
            except Exception as error:
                answer = type(error).__name__
            told[asked, known] = answer
            held = bool(model._database.table("held"))
            assert held == ((asked, known) in {("prepare", "nothing"), ("prepare", "PREPARED")})
    assert told == {
        ("prepare", "nothing"): "yes",
        ("prepare", "PREPARED"): "yes",
        ("prepare", "COMMITTED"): "yes",
        ("prepare", "ABORTED"): "no",
        ("commit", "nothing"): "UnknownTransaction",
        ("commit", "PREPARED"): "done",
        ("commit", "COMMITTED"): "done",
        ("commit", "ABORTED"): "TransactionEnded",
        ("abort", "nothing"): "done",
        ("abort", "PREPARED"): "done",
        ("abort", "COMMITTED"): "TransactionEnded",
        ("abort", "ABORTED"): "done",
    }


def test_what_another_transaction_holds_is_refused_for_good() -> None:
    model = Resources("bank", LocalDatabase())
    assert model.prepare_payload("t", {"resources": ["a"]})
    assert not model.prepare_payload("u", {"resources": ["b", "a"]})
    model.abort("t")
    assert not model.prepare_payload("u", {"resources": ["b", "a"]})
    assert not model._database.table("held")
