"""Sagas a second when there are always more to do, and the CPU that each costs, by process."""

from collections.abc import Callable

from bench.distribution import median
from bench.load import FromOutbox, Load, OverRest, OverRestToEnd
from bench.stage import Stage

BENCH = "throughput"
#: Every how many sagas one is refused at its last step; 0: none.
MIXES = {"success": 0, "10pct_fail": 10}

#: How sagas are started. What each is, for the report.
KINDS = {
    "outbox": "from a service's outbox, one transaction a saga, 8 connections",
    "outbox-50": "from a service's outbox, 50 sagas a transaction, 8 connections",
    "rest": "one by one over REST, closed loop of 32 requests",
    "rest-to-end": "one by one over REST, 64 sagas under way: each client waits for the END of its saga",
}


def loads(stage: Stage) -> dict[str, Callable[[], Load]]:
    """For each of ``KINDS`` what makes it."""
    return {
        "outbox": lambda: FromOutbox(stage.endpoints),
        "outbox-50": lambda: FromOutbox(stage.endpoints, per_transaction=50),
        "rest": lambda: OverRest(stage.endpoints),
        "rest-to-end": lambda: OverRestToEnd(stage.endpoints, stage.ends, limit_s=stage.limit_s),
    }


def measure(stage: Stage, *, sagas: int, runs: int, kinds: tuple[str, ...] = tuple(KINDS)) -> None:
    """``runs`` of each kind and mix, in turn: whatever drifts meanwhile hits all alike."""
    makers = loads(stage)
    for run in range(1, runs + 1):
        for kind in kinds:
            for mix, fail_every in MIXES.items():
                with makers[kind]() as load:
                    result = stage.measure(load, sagas, fail_every)
                stage.say(f"{kind}, {mix}, run {run}: {result['sagas_per_s']}/s, {result['cpu_ms']} ms CPU a saga")
                stage.results.add(BENCH, kind=kind, mix=mix, repetition=run, **result)


def saturation(stage: Stage, *, sagas: int) -> float:
    """Sagas a second from the outbox, one transaction each: as measured in this run, else measured now."""
    if not stage.results.of(BENCH, kind="outbox", mix="success"):
        measure(stage, sagas=sagas, runs=1, kinds=("outbox",))
    return median([float(one["sagas_per_s"]) for one in stage.results.of(BENCH, kind="outbox", mix="success")])
