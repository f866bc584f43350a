"""Twice as much as the platform can do, for minutes: does memory grow, is anything lost, is it over when it is over?"""

import asyncio
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import psutil

from bench import cpu, throughput
from bench.distribution import arrivals, median
from bench.ends import NotEnded
from bench.load import OverRest
from bench.stage import BenchmarkFailed, Stage, milliseconds

BENCH = "overload"
#: As far as it went.
FAILED = "overload-failed"
#: Of what it can do.
FACTOR = 2
#: Requests under way at once, at most: what does not fit is not sent, and counted.
_MOST_AT_ONCE = 2_000
_SAMPLE_S = 5.0
_SEED = 11


@dataclass
class _Seen:
    accepted: list[str] = field(default_factory=list)
    #: By status and Retry-After.
    answers: Counter[tuple[int, str | None]] = field(default_factory=Counter)
    #: Requests without an answer that could be read, by what went wrong, and by minute from the start.
    failed: Counter[str] = field(default_factory=Counter)
    failed_in: Counter[int] = field(default_factory=Counter)
    not_sent: int = 0
    #: Seconds until an answer, by whether it was accepted and by minute from the start.
    took: dict[bool, dict[int, list[float]]] = field(default_factory=lambda: {True: {}, False: {}})
    #: Megabytes by process, every few seconds.
    memory: list[dict[str, float]] = field(default_factory=list)


class _Flood(OverRest):
    """Requests that come by chance, whether or not those before are answered."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage.endpoints, clients=_MOST_AT_ONCE)
        self._stage = stage
        self.seen = _Seen()

    def run(self, rate: float, seconds: float) -> None:
        self._loop.run_until_complete(self._run(rate, seconds))

    async def _run(self, rate: float, seconds: float) -> None:
        sampling = asyncio.create_task(self._sample())
        began, under_way = time.monotonic(), set[asyncio.Task[None]]()
        for at in arrivals(rate, seconds, _SEED):
            await asyncio.sleep(max(0.0, began + at - time.monotonic()))
            if len(under_way) >= _MOST_AT_ONCE:
                self.seen.not_sent += 1
                continue
            task = asyncio.create_task(self._one(int(at // 60)))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
        await asyncio.gather(*under_way)
        if not sampling.cancel():
            sampling.result()  # it ends by an error only

    async def _one(self, minute: int) -> None:
        began = time.monotonic()
        try:
            status, retry_after, id = await self.ask()
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            self.seen.failed[f"{type(error).__name__}: {error}"[:200]] += 1
            self.seen.failed_in[minute] += 1
            return
        self.seen.took[status == 201].setdefault(minute, []).append(time.monotonic() - began)
        self.seen.answers[status, retry_after] += 1
        if id is not None:
            self.seen.accepted.append(id)

    async def _sample(self) -> None:
        while True:
            self.seen.memory.append(_megabytes(self._stage))
            await asyncio.sleep(_SAMPLE_S)


def measure(stage: Stage, *, seconds: float, sagas: int) -> None:
    """Twice the rate of ``rest`` (that of this run, or measured now) for ``seconds``, then nothing until all is done.

    Raises:
        BenchmarkFailed: no answer, or one that is neither 201, nor 429 or 503 with Retry-After; or what was accepted
            has not ended well within as long again.
    """
    if not stage.results.of(throughput.BENCH, kind="rest", mix="success"):
        throughput.measure(stage, sagas=sagas, runs=1, kinds=("rest",))
    can = median([float(one["sagas_per_s"]) for one in stage.results.of(throughput.BENCH, kind="rest", mix="success")])
    stage.look_at_the_clock()
    with _Flood(stage) as flood:
        before = cpu.snapshot(stage.pids)
        flood.run(FACTOR * can, seconds)
        over, seen, after = time.time(), flood.seen, cpu.snapshot(stage.pids)
        told = _told(seen, seconds, can) | {"percent_of_a_core_by_process": cpu.cores(before, after, seconds)}
        wrong = {
            f"{status}, Retry-After: {retry_after}": count
            for (status, retry_after), count in seen.answers.items()
            if status != 201 and (status not in (429, 503) or retry_after is None)
        }
        if wrong or seen.failed:
            stage.results.add(
                FAILED, **told, wrong=wrong, no_answer=dict(seen.failed), no_answer_by_minute=dict(seen.failed_in)
            )
            raise BenchmarkFailed(f"answers that are not among those allowed: {wrong}; no answer: {seen.failed}")
        try:
            recovered = stage.ends.wait(seen.accepted, seconds + stage.limit_s) - over
        except NotEnded as error:
            stage.results.add(FAILED, **told)
            raise BenchmarkFailed(f"accepted and not done: {error}") from error
        stage.check(seen.accepted, 0)
        last = flood.one()
    stage.ends.wait([last], stage.limit_s)
    result = stage.results.add(BENCH, **told, done_after_s=round(recovered, 1))
    stage.say(
        f"overload: {result['accepted']} accepted, {result['refused']} refused, the last was done "
        f"{result['done_after_s']} s after the end"
    )


def _told(seen: _Seen, seconds: float, can: float) -> dict[str, Any]:
    first, last = _grown(seen.memory)
    return {
        "seconds": round(seconds),
        "can_per_s": can,
        "asked_per_s": round(FACTOR * can, 1),
        "accepted": len(seen.accepted),
        "refused": sum(count for (status, _), count in seen.answers.items() if status != 201),
        "not_sent": seen.not_sent,
        "accepted_ms_by_minute": _by_minute(seen.took[True]),
        "refused_ms_by_minute": _by_minute(seen.took[False]),
        "memory_mb_in_second_minute": first,
        "memory_mb_at_the_end": last,
    }


def _by_minute(took: dict[int, list[float]]) -> dict[int, dict[str, float]]:
    return {minute + 1: milliseconds(some) for minute, some in sorted(took.items())}


def _megabytes(stage: Stage) -> dict[str, float]:
    """Resident memory by process. PostgreSQL's backends share theirs: it is left out."""
    found = {}
    for name, process in cpu.processes(stage.pids):
        if name != "postgres":
            with suppress(psutil.NoSuchProcess):
                found[name] = process.memory_info().rss / 1024**2
    return found


def _grown(samples: list[dict[str, float]]) -> tuple[dict[str, float], dict[str, float]]:
    """Medians of a minute of samples: the second minute, in which all that is made once is there, and the last."""
    minute = int(60 / _SAMPLE_S)
    return _medians(samples[minute : 2 * minute] or samples), _medians(samples[-minute:])


def _medians(samples: list[dict[str, float]]) -> dict[str, float]:
    names = sorted({name for one in samples for name in one})
    return {name: round(median([one[name] for one in samples if name in one]), 1) for name in names}
