"""Calls side by side: places, turns, room to wait; and which offsets may be committed."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox_relay.lanes import LaneLimits, Lanes, Overloaded
from outbox_relay.window import Window


class Work:
    """Jobs (lane, number) that run until they are told to end."""

    def __init__(self, limits: LaneLimits) -> None:
        self.begun: list[tuple[str, int]] = []
        self._ends: dict[tuple[str, int], asyncio.Event] = {}
        self.lanes: Lanes[tuple[str, int]] = Lanes(limits, self._run)

    async def _run(self, job: tuple[str, int]) -> None:
        self.begun.append(job)
        self._ends[job] = asyncio.Event()
        await self._ends[job].wait()

    async def submit(self, lane: str, *numbers: int, size: int = 1) -> None:
        for number in numbers:
            self.lanes.submit(lane, (lane, number), size)
        await asyncio.sleep(0)

    async def end(self, *jobs: tuple[str, int]) -> None:
        for job in jobs:
            self._ends.pop(job).set()
        for _ in range(3):
            await asyncio.sleep(0)

    def running(self) -> Counter[str]:
        return Counter(lane for lane, _ in self._ends)


def with_work(limits: LaneLimits, test: Callable[[Work], Awaitable[None]]) -> None:
    async def run() -> None:
        work = Work(limits)
        await test(work)
        work.lanes.drop(lambda job: True)
        await work.lanes.finish(0)
        assert (work.lanes.running, work.lanes.waiting, work.lanes.waiting_bytes) == (0, 0, 0)
        assert not work.lanes._lanes

    asyncio.run(run())


def test_a_lane_runs_so_many_at_once_and_the_rest_in_order() -> None:
    async def test(work: Work) -> None:
        await work.submit("a", *range(5))
        assert work.begun == [("a", 0), ("a", 1)]
        await work.end(("a", 1))
        await work.end(("a", 0))
        assert work.begun == [("a", 0), ("a", 1), ("a", 2), ("a", 3)]

    with_work(LaneLimits(running=2, running_total=100), test)


def test_lanes_that_hang_leave_a_place_for_another() -> None:
    async def test(work: Work) -> None:
        for lane in "abcdefgh":
            await work.submit(lane, *range(50))
        assert work.lanes.running < 16
        await work.submit("quick", 0)
        assert ("quick", 0) in work.begun

    with_work(LaneLimits(running=8, running_total=16), test)


def test_a_lane_grows_again_when_places_come_free() -> None:
    async def test(work: Work) -> None:
        await work.submit("hog", *range(8))
        await work.submit("a", *range(20))
        few = work.running()["a"]
        await work.end(*[job for job in work.begun if job[0] == "hog"])
        for _ in range(20):
            await work.end(*[job for job in work.begun if job in work._ends and job[0] == "hog"])
        assert work.running()["a"] > few

    with_work(LaneLimits(running=8, running_total=16), test)


def test_lanes_that_wait_take_turns() -> None:
    async def test(work: Work) -> None:
        await work.submit("a", *range(10))
        await work.submit("b", *range(10))
        while work.lanes.waiting:
            await work.end(next(iter(work._ends)))
        order = "".join(lane for lane, _ in work.begun)
        assert "aaa" not in order[2:-2]
        assert "bbb" not in order[2:-2]

    with_work(LaneLimits(running=1, running_total=2), test)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (LaneLimits(running=1, waiting=3), "the relay has 3 commands waiting for a"),
        (LaneLimits(running=1, waiting_bytes=35), "the relay has 3 commands waiting for a"),
        (LaneLimits(running=1, waiting_total=3), "the relay has 3 commands waiting, 3 of them for a"),
        (LaneLimits(running=1, waiting_bytes_total=35), "the relay has 3 commands waiting, 3 of them for a"),
    ],
)
def test_what_does_not_fit_is_told_at_once(limits: LaneLimits, message: str) -> None:
    async def test(work: Work) -> None:
        await work.submit("a", *range(4), size=10)
        with pytest.raises(Overloaded, match=message):
            await work.submit("a", 4, size=10)
        await work.submit("b", 0, size=10)
        await work.end(("a", 0))
        await work.submit("a", 5, size=10)

    with_work(limits, test)


def test_what_is_not_wanted_any_more_is_dropped() -> None:
    async def test(work: Work) -> None:
        await work.submit("a", *range(10))
        await work.submit("b", *range(10))
        assert work.lanes.drop(lambda job: job[1] % 2 == 0) == 8
        while work._ends:
            await work.end(next(iter(work._ends)))
        assert {job for job in work.begun if job[1] % 2 == 0} == {("a", 0), ("b", 0)}

    with_work(LaneLimits(running=2, running_total=100), test)


def test_a_job_that_raises_is_told() -> None:
    async def run() -> None:
        async def fails(job: str) -> None:
            raise RuntimeError(job)

        lanes: Lanes[str] = Lanes(LaneLimits(), fails)
        lanes.submit("a", "one", 1)
        lanes.submit("a", "two", 1)
        with pytest.raises(RuntimeError, match="one"):
            await lanes.failure

    asyncio.run(run())


@given(
    st.integers(1, 4),
    st.integers(2, 6),
    st.lists(st.tuples(st.sampled_from("abcd"), st.booleans()), max_size=60),
)
def test_no_limit_is_passed_and_nothing_is_forgotten(each: int, total: int, steps: list[tuple[str, bool]]) -> None:
    async def test(work: Work) -> None:
        submitted = 0
        for lane, end in steps:
            if end and work._ends:
                await work.end(next(iter(work._ends)))
            else:
                await work.submit(lane, submitted)
                submitted += 1
            assert work.lanes.running == len(work._ends) <= total
            assert all(running <= each for running in work.running().values())
        while work._ends:
            await work.end(next(iter(work._ends)))
        assert len(work.begun) == submitted
        for lane in "abcd":
            numbers = [number for name, number in work.begun if name == lane]
            assert numbers == sorted(numbers)

    with_work(LaneLimits(running=each, running_total=total), test)


@given(st.lists(st.integers(1, 5), max_size=30), st.randoms())
def test_an_offset_is_committed_only_when_all_below_it_are_done(gaps: list[int], random: object) -> None:
    offsets, at = [], 10
    for gap in gaps:
        offsets.append(at)
        at += gap  # transactional producers leave holes
    window = Window(remembered=10)
    for offset in offsets:
        window.taken(offset)
    done: set[int] = set()
    for offset in sorted(offsets, key=lambda _: random.random()):  # type: ignore[attr-defined]
        window.done(offset)
        done.add(offset)
        committed = window.to_commit()
        unfinished = [o for o in offsets if o not in done]
        if committed is not None:
            assert all(o in done for o in offsets if o < committed)
            assert window.to_commit() is None, "the same is not committed twice"
        assert len(window) == (len(offsets) - offsets.index(unfinished[0]) if unfinished else 0)
    if offsets:
        assert window.position == offsets[-1] + 1


def test_a_second_copy_is_known_while_the_first_is_called_and_afterwards_until_others_took_its_place() -> None:
    window = Window(remembered=2)
    assert window.begins("a")
    assert not window.begins("a")
    for offset, id in enumerate("abc"):
        window.taken(offset)
        window.begins(id)
    window.done(0, "a")
    assert not window.begins("a"), "answered"
    window.done(1, "b")
    window.done(2, "c")
    assert [window.begins(id) for id in "abc"] == [True, False, False]
