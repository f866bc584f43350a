"""The faults of the torture: all of DESIGN section 6 are in the table, and a seed says which strike when."""

import ast
from itertools import islice
from pathlib import Path

import pytest

from tests.torture.faults import FAULTS, INJECTED, UNPROVEN, Way
from tests.torture.schedule import strikes

ROOT = Path(__file__).parents[2]
#: DESIGN section 6 counts so many.
NUMBERS = set(range(1, 21))


def test_every_fault_of_the_design_is_injected_covered_elsewhere_or_said_not_to_be() -> None:
    proven = {number for fault in FAULTS for number in fault.numbers}
    assert proven | set(UNPROVEN) == NUMBERS
    assert not proven & set(UNPROVEN)


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault.way is Way.ELSEWHERE], ids=lambda one: one.name)
def test_a_test_that_is_named_exists(fault: object) -> None:
    file, _, name = getattr(fault, "target").partition("::")  # noqa: B009
    tree = ast.parse((ROOT / file).read_text())
    assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_a_line_at_which_somebody_is_killed_is_in_the_code() -> None:
    code = "\n".join(
        file.read_text()
        for package in ("coordinator", "saga_processors", "participant", "outbox_relay")
        for file in (ROOT / package).rglob("*.py")
    )
    for fault in FAULTS:
        if fault.way is Way.CRASH:
            # One place has its name from the verb: participant.{name}.before_commit.
            verbless = ".".join(["participant", "{name}", fault.target.rpartition(".")[2]])
            assert f'crash_at("{fault.target}")' in code or f'crash_at(f"{verbless}")' in code, fault.name


def test_a_seed_always_gives_the_same_strikes_and_another_one_others() -> None:
    assert list(islice(strikes(7), 60)) == list(islice(strikes(7), 60))
    assert list(islice(strikes(7), 60)) != list(islice(strikes(8), 60))


def test_every_fault_strikes_before_one_strikes_twice() -> None:
    struck: list[str] = []
    for strike in strikes(3):
        struck += [fault.name for fault in strike.faults]
        if len(struck) >= len(INJECTED):
            break
    assert sorted(struck) == sorted(INJECTED)


def test_two_faults_sometimes_come_together_and_never_on_one_process() -> None:
    pairs = [strike.faults for strike in islice(strikes(1), 400) if len(strike.faults) == 2]
    assert 20 < len(pairs) < 200
    assert all(one.target != other.target for one, other in pairs)


def test_only_the_faults_that_are_named_strike() -> None:
    names = {fault.name for strike in islice(strikes(1, ["kill-alpha", "poison"]), 30) for fault in strike.faults}
    assert names == {"kill-alpha", "poison"}


@pytest.mark.parametrize("name", ["kill-nobody", "slot-dropped"])
def test_a_name_of_nothing_that_can_be_injected_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        next(strikes(1, [name]))
