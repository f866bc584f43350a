"""Many sagas that wait for a timer each: what they cost while they wait, and how late they wake."""

import time
from typing import Any

import psycopg

from bench.load import FromOutbox
from bench.order import NAMES
from bench.stage import BenchmarkFailed, Stage, milliseconds
from participant.sagas import Retry, Step, start
from saga_processors.records import to_ms

BENCH = "timers"
_PER_TRANSACTION = 50
_LOOK_S = 0.5

_WAITING = """
    SELECT id::text, next_deadline FROM transactions
    WHERE id = ANY(%s::uuid[]) AND state = 'EXECUTING' AND next_deadline > now() + interval '1 second' * %s
"""


def measure(stage: Stage, *, waiting: int, wait_s: float, sagas: int, runs: int) -> None:
    """The same load without and with ``waiting`` sagas whose service has said no; they ask again in ``wait_s`` seconds.

    Raises:
        BenchmarkFailed: the load took longer than they wait, so that they were no longer there; or one did not end.
    """
    _load(stage, 0, sagas, runs)
    idle = stage.idle(5)
    stage.results.add(BENCH, measured="idle", waiting=0, **idle)
    began = time.time()
    ids = _start(stage, waiting, began + wait_s / 2, wait_s)
    due = _await_waiting(stage, ids, wait_s / 2)
    stage.say(f"{waiting} sagas wait for their timers after {time.time() - began:.0f} s")
    idle = stage.idle(5)
    stage.results.add(BENCH, measured="idle", waiting=waiting, **idle)
    _load(stage, waiting, sagas, runs)
    first = min(due.values()) / 1000
    if time.time() > first:
        raise BenchmarkFailed(f"the first timer was due {time.time() - first:.0f} s ago: let them wait longer")
    stage.ends.wait(ids, wait_s * 2 + stage.limit_s)
    late = [stage.ends.at(id) - due[id] / 1000 for id in ids]
    span = (max(due.values()) - min(due.values())) / 1000
    told = stage.results.add(
        BENCH, measured="lateness", waiting=waiting, due_within_s=round(span, 1), **milliseconds(late)
    )
    stage.say(f"{waiting} timers within {span:.0f} s: ended p50 {told['p50_ms']} ms, p99 {told['p99_ms']} ms after")
    stage.check(ids, 0, steps=NAMES[:1])


def _load(stage: Stage, waiting: int, sagas: int, runs: int) -> None:
    with FromOutbox(stage.endpoints) as load:
        for run in range(1, runs + 1):
            result = stage.measure(load, sagas, 0)
            stage.results.add(BENCH, measured="rate", waiting=waiting, repetition=run, **result)
            stage.say(f"{waiting} waiting: {result['sagas_per_s']}/s, {result['cpu_ms']} ms CPU a saga")


def _start(stage: Stage, count: int, not_before: float, wait_s: float) -> list[str]:
    """One step each, which must succeed: refused until ``not_before``, and asked again after ``wait_s`` seconds."""
    retry = Retry(max_attempts=3, initial_delay_seconds=wait_s, max_delay_seconds=wait_s, jitter=0)
    step = Step(
        NAMES[0],
        {"refuse": False, "not_before": not_before},
        name=NAMES[0],
        command="do",
        kind="retriable",
        retry=retry,
    )
    ids = []
    with FromOutbox(stage.endpoints, connections=1) as load:
        for first in range(0, count, _PER_TRANSACTION):
            with load.engine.begin() as connection:
                ids += [str(start(connection, "waits", [step])) for _ in range(min(_PER_TRANSACTION, count - first))]
    return ids


def _await_waiting(stage: Stage, ids: list[str], limit_s: float) -> dict[str, int]:
    """When each of them will ask again, ms; once all of them wait for that."""
    deadline = time.monotonic() + limit_s
    found: list[tuple[str, Any]] = []
    with psycopg.connect(stage.endpoints["DATABASE_URL"], autocommit=True) as connection:
        while time.monotonic() < deadline:
            # The timer of an attempt is 30 s.
            found = connection.execute(_WAITING, (ids, 31)).fetchall()
            if len(found) == len(ids):
                return {id: to_ms(at) for id, at in found}
            time.sleep(_LOOK_S)
    raise BenchmarkFailed(f"only {len(found)} of {len(ids)} sagas wait for their timers after {limit_s:.0f} s")
