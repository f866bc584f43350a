"""Growth: more processors, and more sagas in the tables."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import httpx

from bench.distribution import median
from bench.latency import alone_from_outbox
from bench.load import FromOutbox
from bench.stage import BenchmarkFailed, Stage
from bench.stored import fill
from deploy.processes import MARKER, marker, write_atomically
from deploy.settings import PROJECT

PROCESSORS = "processors"
STORED = "stored"
#: Of the health ports of further processors, within the stack's block of a hundred.
_FIRST_PORT = 70
_READY_S = 60
_STOP_S = 30
#: A processor that is gone keeps its partitions for the session's time (FLUXORA_SESSION_TIMEOUT, 6 s).
_REBALANCE_S = 8


def processors(stage: Stage, *, counts: Sequence[int], sagas: int, runs: int) -> None:
    """The same load with 1, 2, 4 … processors. They are started beside the stack's, so that the JVMs stay warm."""
    for count in counts:
        stage.look_at_the_clock()
        with _processors(stage, count), FromOutbox(stage.endpoints, per_transaction=50) as load:
            stage.measure(load, min(sagas, 2_000), 0)  # the new ones' partitions and caches
            for run in range(1, runs + 1):
                result = stage.measure(load, sagas, 0)
                stage.results.add(PROCESSORS, processors=count, kind="outbox-50", repetition=run, **result)
                stage.say(f"{count} processors, run {run}: {result['sagas_per_s']}/s, {result['cpu_ms']} ms CPU a saga")


def stored(stage: Stage, *, sizes: Sequence[int], sagas: int, runs: int, alone: int, fill_limit_s: float) -> None:
    """The same load with more and more finished sagas in the coordinator's tables, then with few of them again.

    The last, with as few as at first, shows how much of a difference is time's and not size's. What participants keep
    (inbox, barrier, their own rows) does not grow but by what is measured.
    """
    for turn, size in enumerate([*sizes, sizes[0]]):
        stage.look_at_the_clock()
        stage.say(f"filling up to {size} finished sagas")
        filled = fill(stage, size, limit_s=fill_limit_s)
        again = turn == len(sizes)
        with FromOutbox(stage.endpoints) as load:
            stage.measure(load, min(sagas, 1_000), 0)
            if not again and size == sizes[0]:
                # Small enough to be changed by what is measured.
                filled = fill(stage, size, limit_s=fill_limit_s)
            for run in range(1, runs + 1):
                result = stage.measure(load, sagas, 0)
                stage.results.add(STORED, measured="rate", again=again, repetition=run, **filled, **result)
                stage.say(f"{filled['stored']} stored: {result['sagas_per_s']}/s, {result['cpu_ms']} ms CPU a saga")
        before = len(stage.results.lines)
        alone_from_outbox(stage, sagas=alone)
        [told] = stage.results.lines[before:]
        stage.results.add(
            STORED,
            measured="latency",
            again=again,
            **filled,
            **{k: told[k] for k in ("n", "p50_ms", "p99_ms", "max_ms")},
        )
    ratio = _ratio(stage, sizes)
    if ratio is not None:
        stage.say(f"CPU a saga, {sizes[-1]} stored to {sizes[0]}: {ratio:.2f}")


def _ratio(stage: Stage, sizes: Sequence[int]) -> float | None:
    few = [one["cpu_ms"] for one in stage.results.of(STORED, measured="rate", wanted=sizes[0])]
    many = [one["cpu_ms"] for one in stage.results.of(STORED, measured="rate", wanted=sizes[-1])]
    return median(many) / median(few) if few and many else None


@contextmanager
def _processors(stage: Stage, count: int) -> Iterator[None]:
    """``count`` of them in all, until it is left. They carry the stack's mark: whatever happens, it stops them too."""
    own = stage.stack.settings.processors
    if count < own:
        raise BenchmarkFailed(f"the stack runs {own} processors already: FLUXORA_PROCESSORS is to be at most {count}")
    started: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for number in range(own + 1, count + 1):
            name = f"saga-processor-{number}"
            started[name] = _start(stage, name, _port(stage, number))
        for number in range(own + 1, count + 1):
            _await_ready(_port(stage, number), f"saga-processor-{number}")
        if started:
            time.sleep(2)
        yield
    finally:
        for process in started.values():
            process.terminate()
        for name, process in started.items():
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            (stage.pids / name).unlink(missing_ok=True)
        if started:
            time.sleep(_REBALANCE_S)


def _start(stage: Stage, name: str, port: int) -> "subprocess.Popen[bytes]":
    environment = {
        **os.environ,
        **stage.endpoints,
        "FLUXORA_INSTANCE": name,
        "FLUXORA_HEALTH_PORT": str(port),
        "PYTHONUNBUFFERED": "1",
        MARKER: marker(stage.stack.root, name),
    }
    with stage.stack.settings.log_file(name).open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "saga_processors"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=PROJECT,
            env=environment,
        )
    write_atomically(stage.pids / name, str(process.pid))
    return process


def _port(stage: Stage, number: int) -> int:
    return stage.stack.settings.postgres_port + _FIRST_PORT + number


def _await_ready(port: int, name: str) -> None:
    deadline = time.monotonic() + _READY_S
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/ready", timeout=2).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    raise BenchmarkFailed(f"{name} was not ready within {_READY_S} s")
