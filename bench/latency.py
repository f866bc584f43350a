"""How long one saga takes: alone, and at half of what the machine can do; and where that time goes."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
from confluent_kafka import Message

from bench import hops
from bench.distribution import arrivals
from bench.ends import NotEnded
from bench.load import FromOutbox, OverRest, at_times
from bench.order import NAMES
from bench.stage import BenchmarkFailed, Stage, milliseconds
from bench.topics import Since, seconds_of
from participant.sagas import INPUT_TOPIC

BENCH = "latency"
#: Connections of the open loop. With all of them busy a saga begins late, which is then part of its time.
CONNECTIONS = 16
_SEED = 7


@dataclass(frozen=True, slots=True)
class Started:
    """What the client saw of one saga, seconds since 1970."""

    id: str
    due: float
    began: float
    committed: float


def alone_from_outbox(stage: Stage, *, sagas: int) -> None:
    """One saga after the other, each from a transaction of its own."""
    with FromOutbox(stage.endpoints, connections=1) as load, traced(stage) as finish:

        def one() -> Started:
            started = _start(load, time.time())
            _wait(stage, started.id)
            return started

        for _ in range(20):
            one()  # prepared statements, caches
        finish("outbox-alone", [one() for _ in range(sagas)])


def at_rate_from_outbox(stage: Stage, *, rate: float, seconds: float, of_saturation: float | None = None) -> None:
    """Sagas that come by chance (a Poisson process), ``rate`` a second on average, whether or not others have ended."""
    with FromOutbox(stage.endpoints, connections=CONNECTIONS) as load, traced(stage) as finish:
        all_started = at_times(CONNECTIONS, lambda due: _start(load, due), arrivals(rate, seconds, _SEED))
        finish("outbox-half", all_started, asked_per_s=round(rate, 1), of_saturation_per_s=of_saturation)


def alone_over_rest(stage: Stage, *, sagas: int) -> None:
    """One saga after the other over REST: until the answer, which says that it is durable, and until its end."""
    stage.look_at_the_clock()
    answered, whole = [], []
    with OverRest(stage.endpoints, clients=1) as load:
        for i in range(20 + sagas):
            began = time.time()
            id = load.one()
            now = time.time()
            ended = _wait(stage, id)
            if i >= 20:
                answered.append(now - began)
                whole.append(ended - began)
    result = stage.results.add(BENCH, kind="rest-alone", **milliseconds(whole), until_answer=milliseconds(answered))
    stage.say(f"rest-alone: p50 {result['p50_ms']} ms, p99 {result['p99_ms']} ms")


@contextmanager
def traced(stage: Stage) -> Iterator[Callable[..., None]]:
    """Record where sagas that are started from the outbox spend their time.

    A reply's row says when its transaction began (``now()``). Here it says when it was written instead: the business
    row has the other moment.
    """
    stage.look_at_the_clock()
    column = "ALTER TABLE fluxora.outbox ALTER created_at SET DEFAULT"
    with psycopg.connect(stage.orders_url, autocommit=True) as orders:
        orders.execute(f"{column} clock_timestamp()")
        commands = [f"{name}.commands" for name in NAMES]
        try:
            with Since(stage.endpoints["KAFKA_BOOTSTRAP_SERVERS"], [INPUT_TOPIC, *commands]) as log:

                def finish(kind: str, all_started: list[Started], **further: object) -> None:
                    _report(stage, orders, log, kind, all_started, further)

                yield finish
        finally:
            orders.execute(f"{column} now()")


def _report(
    stage: Stage,
    orders: psycopg.Connection,
    log: Since,
    kind: str,
    all_started: list[Started],
    further: dict[str, object],
) -> None:
    ids = [started.id for started in all_started]
    try:
        last = stage.ends.wait(ids, stage.limit_s)
    except NotEnded as error:
        raise BenchmarkFailed(f"{kind}: {error}") from error
    stage.check(ids, 0)
    traces = _traces(stage, orders, log, all_started)
    whole = [trace.ended - trace.due for trace in traces]
    span = last - min(started.due for started in all_started)
    complete = [trace for trace in traces if trace.complete]
    result = stage.results.add(
        BENCH,
        kind=kind,
        **milliseconds(whole),
        sagas_per_s=round(len(ids) / span, 1),
        **further,
        traced=len(complete),
        hops=hops.by_hop(complete),
    )
    stage.say(f"{kind}: p50 {result['p50_ms']} ms, p99 {result['p99_ms']} ms, {result['sagas_per_s']}/s")


def _traces(stage: Stage, orders: psycopg.Connection, log: Since, all_started: list[Started]) -> list[hops.Trace]:
    inputs: dict[str, list[float]] = defaultdict(list)
    commands: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))

    def take(message: Message) -> None:
        id, topic = (message.key() or b"").decode(), message.topic() or ""
        if topic == INPUT_TOPIC:
            # A key's records come in order: the start, then the replies, one step after the other.
            inputs[id].append(seconds_of(message))
        else:
            commands[id][topic].append(seconds_of(message))

    log.read(take)
    ids = [started.id for started in all_started]
    began: dict[str, dict[str, float]] = defaultdict(dict)
    for name in NAMES:
        for id, at in orders.execute(
            f"SELECT order_id::text, extract(epoch FROM at)::float8 FROM {name} WHERE order_id = ANY(%s::uuid[])",
            (ids,),
        ):
            began[id][name] = at
    replied: dict[str, dict[str, float]] = defaultdict(dict)
    for id, name, at in orders.execute(
        "SELECT aggregateid, source, extract(epoch FROM created_at)::float8 FROM fluxora.outbox "
        "WHERE aggregateid = ANY(%s) AND source = ANY(%s)",
        (ids, list(NAMES)),
    ):
        replied[id][name] = at
    return [
        hops.Trace(
            started.due,
            started.began,
            started.committed,
            inputs[started.id],
            [at for name in NAMES for at in commands[started.id][f"{name}.commands"]],
            [began[started.id][name] for name in NAMES if name in began[started.id]],
            [replied[started.id][name] for name in NAMES if name in replied[started.id]],
            stage.ends.at(started.id),
        )
        for started in all_started
    ]


def _start(load: FromOutbox, due: float) -> Started:
    began = time.time()
    [id] = load.in_one([0])
    return Started(id, min(due, began), began, time.time())


def _wait(stage: Stage, id: str) -> float:
    try:
        return stage.ends.wait_for_one(id, stage.limit_s)
    except NotEnded as error:
        raise BenchmarkFailed(str(error)) from error
