"""Ratios of ours to the peers', from result lines. Pure."""

from collections.abc import Iterable
from typing import Any

from bench.distribution import median
from bench.results import Result, select

#: Our kinds of throughput, and the kind of latency that belongs to each, if one was measured.
KINDS = {"outbox": "outbox-alone", "outbox-50": None, "rest": "rest-alone", "rest-to-end": None}


def ratios(lines: Iterable[Result]) -> list[dict[str, Any]]:
    """For each peer, mix and kind of ours: medians over all rounds, ours to theirs.

    ``sagas_per_s`` over 1 and all others below 1 are in our favour. The peers' CPU has their load client in it, so
    ``cpu`` is with ours; ``cpu_without_clients`` is without both. Latency is of
    sagas that succeed, one after the other.
    """
    lines = list(lines)
    found = []
    for system, mix in dict.fromkeys((one["system"], one["mix"]) for one in select(lines, "peer")):
        theirs = select(lines, "peer", system=system, mix=mix)
        for kind, alone in KINDS.items():
            ours = select(lines, "throughput", kind=kind, mix=mix)
            if not ours:
                continue
            one: dict[str, Any] = {
                "peer": system,
                "mix": mix,
                "kind": kind,
                "sagas_per_s": _ratio([r["sagas_per_s"] for r in ours], _rates(theirs)),
                "cpu": _ratio([r["cpu_ms"] for r in ours], [r["cpu_s_per_saga"] * 1000 for r in theirs]),
                "cpu_without_clients": _ratio(
                    [r["cpu_ms_without_client"] for r in ours],
                    [r["cpu_s_per_saga"] * 1000 - r["cpu_ms_by_part"].get("load", 0.0) for r in theirs],
                ),
            }
            times = select(lines, "latency", kind=alone) if alone and mix == "success" else []
            for field in ("p50_ms", "p99_ms") if times else ():
                one[field] = _ratio([r[field] for r in times], [r[field] for r in theirs])
            found.append(one)
    return found


def _rates(theirs: list[Result]) -> list[float]:
    """Of all repetitions: the driver names one of each round, and lists them all."""
    return [float(rate) for one in theirs for rate in one.get("all_sagas_per_s") or [one["sagas_per_s"]]]


def _ratio(ours: list[float], theirs: list[float]) -> float:
    return round(median(ours) / median(theirs), 3)
