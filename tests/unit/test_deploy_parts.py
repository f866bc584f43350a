"""The order in which parts start and stop, and how long a part that died waits."""

from __future__ import annotations

import itertools

import pytest

from deploy.backoff import Backoff
from deploy.parts import Part, PlanError, dependents, start_order
from deploy.status import PartStatus, StackState, StackStatus


def part(name: str, *requires: str) -> Part:
    return Part(name=name, commands=(("true",),), requires=requires)


def test_a_part_starts_after_all_that_it_requires() -> None:
    parts = [part("services", "init"), part("init", "kafka", "postgres"), part("kafka"), part("postgres")]
    for order in itertools.permutations(parts):
        names = [one.name for one in start_order(order)]
        assert names.index("services") > names.index("init")
        assert names.index("init") > max(names.index("kafka"), names.index("postgres"))


def test_parts_that_wait_for_each_other_are_refused_with_the_circle() -> None:
    with pytest.raises(PlanError, match="a → b → a"):
        start_order([part("a", "b"), part("b", "a")])


def test_an_unknown_requirement_and_a_double_name_are_refused() -> None:
    with pytest.raises(PlanError, match="'x'"):
        start_order([part("a", "x")])
    with pytest.raises(PlanError, match="two parts are named 'a'"):
        start_order([part("a"), part("a")])


def test_a_part_stops_before_what_it_requires() -> None:
    parts = [part("postgres"), part("kafka"), part("connect", "kafka"), part("init", "postgres", "connect")]
    before = dependents(parts)
    status = StackStatus(
        state=StackState.READY,
        since=0,
        supervisor_pid=1,
        parts={one.name: PartStatus(since=0, dependents=sorted(before[one.name])) for one in parts},
    )
    assert status.stop_layers() == [["init"], ["postgres", "connect"], ["kafka"]]


def test_the_first_restart_is_at_once_and_later_ones_wait_longer_up_to_the_cap() -> None:
    backoff = Backoff(first=0.2, cap=15, stable=30, random=lambda: 1.0)
    waits = [backoff.wait_after(uptime=0) for _ in range(10)]
    assert waits[0] == 0.2
    assert waits == sorted(waits)
    assert waits[-1] == 15


def test_jitter_only_shortens_and_never_below_half() -> None:
    longest = Backoff(first=0.2, cap=15, stable=30, random=lambda: 1.0)
    shortest = Backoff(first=0.2, cap=15, stable=30, random=lambda: 0.0)
    for _ in range(8):
        high, low = longest.wait_after(0), shortest.wait_after(0)
        assert high / 2 <= low <= high


def test_a_part_that_ran_long_enough_is_restarted_at_once_again() -> None:
    backoff = Backoff(first=0.2, cap=15, stable=30)
    for _ in range(5):
        backoff.wait_after(uptime=1)
    assert backoff.wait_after(uptime=31) == 0.2
