"""Two-phase commits with two participants: how many a second, and how long one takes."""

import time
from typing import Any
from uuid import UUID

import httpx
import psycopg
import uuid_utils

from bench import cpu
from bench.ends import TWO_PHASE_ENDS, Ends, NotEnded
from bench.load import at_once
from bench.pair import NAMES, payload
from bench.stage import TRAILING_S, BenchmarkFailed, Stage, milliseconds
from deploy.plan import url_variable

BENCH = "two-phase"
CLIENTS = 32
_WARM_UP = 500


def measure(stage: Stage, *, transactions: int, alone: int, runs: int) -> None:
    """For each transport: a closed loop of ``CLIENTS``, ``runs`` times, then ``alone`` one after the other."""
    limits = httpx.Limits(max_connections=CLIENTS, max_keepalive_connections=CLIENTS)
    with (
        Ends(stage.endpoints["DATABASE_URL"], look_up=TWO_PHASE_ENDS) as ends,
        httpx.Client(base_url=stage.endpoints["COORDINATOR_URL"], limits=limits, timeout=30) as http,
    ):
        for transport in NAMES:
            _at_saturation(stage, ends, http, transport, min(_WARM_UP, transactions))
            for run in range(1, runs + 1):
                result = _at_saturation(stage, ends, http, transport, transactions)
                stage.results.add(BENCH, transport=transport, measured="rate", repetition=run, **result)
                stage.say(f"two participants over {transport}, run {run}: {result['transactions_per_s']}/s")
            result = _alone(stage, ends, http, transport, alone)
            stage.results.add(BENCH, transport=transport, measured="latency", **result)
            stage.say(f"two participants over {transport}: p50 {result['p50_ms']} ms, p99 {result['p99_ms']} ms")


def _at_saturation(stage: Stage, ends: Ends, http: httpx.Client, transport: str, transactions: int) -> dict[str, Any]:
    stage.look_at_the_clock()
    before, began = cpu.snapshot(stage.pids), time.time()
    ids = at_once(CLIENTS, lambda _: _begin(stage, http, transport), range(transactions))
    seconds = _wait(ends, ids, stage.limit_s) - began
    time.sleep(TRAILING_S)
    after = cpu.snapshot(stage.pids)
    _check(stage, ids)
    return {
        "transactions": transactions,
        "seconds": round(seconds, 2),
        "transactions_per_s": round(transactions / seconds, 1),
        **cpu.per_saga(before, after, transactions),
    }


def _alone(stage: Stage, ends: Ends, http: httpx.Client, transport: str, transactions: int) -> dict[str, Any]:
    stage.look_at_the_clock()
    ids, times = [], []
    for _ in range(transactions):
        began = time.time()
        ids.append(_begin(stage, http, transport))
        times.append(_wait(ends, ids[-1:], stage.limit_s) - began)
    _check(stage, ids)
    return dict(milliseconds(times))


def _begin(stage: Stage, http: httpx.Client, transport: str) -> str:
    """Two requests: one that begins it, and one to prepare, which is answered when it is decided."""
    id = str(UUID(bytes=uuid_utils.uuid7().bytes))
    participants = []
    for name in NAMES[transport]:
        one: dict[str, Any] = {"service_name": name, "payload": payload(id)}
        if transport == "http":
            one["service_url"] = stage.endpoints[url_variable(name)]
        participants.append(one)
    whole = {"transaction_id": id, "auto_commit": True, "participants": participants}
    http.post("/transactions", json=whole).raise_for_status()
    http.post(f"/transactions/{id}/prepare").raise_for_status()
    return id


def _wait(ends: Ends, ids: list[str], limit_s: float) -> float:
    try:
        return ends.wait_for_one(ids[0], limit_s) if len(ids) == 1 else ends.wait(ids, limit_s)
    except NotEnded as error:
        raise BenchmarkFailed(str(error)) from error


def _check(stage: Stage, ids: list[str]) -> None:
    with psycopg.connect(stage.endpoints["DATABASE_URL"]) as connection:
        [(committed,)] = connection.execute(
            "SELECT count(*) FROM transactions WHERE id = ANY(%s::uuid[]) AND state = 'COMMITTED'", (ids,)
        ).fetchall()
    if committed != len(ids):
        raise BenchmarkFailed(f"only {committed} of {len(ids)} two-phase commits are COMMITTED")
