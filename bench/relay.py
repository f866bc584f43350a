"""From an outbox to a consumer: how long a row takes, and how many a second Debezium moves."""

import time
import uuid
from typing import Any

from confluent_kafka import Message
from sqlalchemy import create_engine

from bench.distribution import arrivals
from bench.load import at_once, at_times
from bench.stage import BenchmarkFailed, Stage, milliseconds
from bench.topics import Since, make_topic, seconds_of
from participant import outbox
from participant.settings import sqlalchemy_url

BENCH = "relay"
TOPIC = "bench.relay"
#: Bytes of a message: as an order.
_PAYLOAD = b"x" * 200
#: Rows of one INSERT, in a transaction of its own, while the relay is driven.
_ROWS = 100
_WRITERS = 2
_SEED = 11


def latency(stage: Stage, *, rate: float, seconds: float) -> None:
    """Single rows, as chance has it: from the COMMIT's answer, and from BEGIN, until a consumer has the record."""
    stage.look_at_the_clock()
    bootstrap = stage.endpoints["KAFKA_BOOTSTRAP_SERVERS"]
    make_topic(bootstrap, TOPIC, 6)
    engine = create_engine(sqlalchemy_url(stage.orders_url), pool_size=4)
    came: dict[str, float] = {}
    appended: dict[str, float] = {}

    def one(due: float) -> tuple[str, float, float]:
        began = time.time()
        with engine.begin() as connection:
            id = outbox.publish(connection, _PAYLOAD, type="bench.Row", topic=TOPIC, key="k")
        return str(id), began, time.time()

    def take(message: Message) -> None:
        id = _id(message)
        came[id] = time.time()
        appended[id] = seconds_of(message)

    with Since(bootstrap, [TOPIC]) as log:
        written: list[tuple[str, float, float]] = []
        done: list[bool] = []

        def write(_: int) -> None:
            try:
                written.extend(at_times(4, one, arrivals(rate, seconds, _SEED)))
            finally:
                done.append(True)

        def read(_: int) -> None:
            log.follow(take, lambda: bool(done) and len(came) >= len(written), seconds + stage.limit_s)

        try:
            at_once(2, lambda which: (write, read)[which](which), range(2))
        except TimeoutError as error:
            raise BenchmarkFailed(str(error)) from error
    engine.dispose()
    result = stage.results.add(
        BENCH,
        measured="latency",
        rows_per_s=rate,
        from_commit=milliseconds([came[id] - committed for id, _, committed in written]),
        from_begin=milliseconds([came[id] - began for id, began, _ in written]),
        appended_to_consumer=milliseconds([came[id] - appended[id] for id, _, _ in written]),
    )
    stage.say(f"outbox commit → consumer: p50 {result['from_commit']['p50_ms']} ms")


def rate(stage: Stage, *, rows: int, runs: int) -> None:
    """Rows are written faster than they can leave; the relay's rate is that of the records' arrival at a consumer."""
    bootstrap = stage.endpoints["KAFKA_BOOTSTRAP_SERVERS"]
    make_topic(bootstrap, TOPIC, 6)
    engine = create_engine(sqlalchemy_url(stage.orders_url), pool_size=_WRITERS)
    for run in range(0, runs + 1):
        stage.look_at_the_clock()
        # The first one warms up.
        result = _drive(stage, engine, bootstrap, rows if run else min(rows, 5_000))
        if run:
            stage.results.add(BENCH, measured="rate", repetition=run, **result)
            stage.say(f"relay, run {run}: {result['relay_rows_per_s']} rows/s ({result['write_rows_per_s']} written)")
    engine.dispose()


def _drive(stage: Stage, engine: Any, bootstrap: str, rows: int) -> dict[str, Any]:
    seen: set[str] = set()
    times: list[float] = []

    def take(message: Message) -> None:
        seen.add(_id(message))
        times.append(time.time())

    def write(first: int) -> None:
        messages = [
            outbox.Message(topic=TOPIC, key=str(first + i), type="bench.Row", payload=_PAYLOAD, source="bench")
            for i in range(min(_ROWS, rows - first))
        ]
        with engine.begin() as connection:
            outbox.publish_many(connection, messages)

    with Since(bootstrap, [TOPIC]) as log:
        began = time.time()
        at_once(_WRITERS, write, range(0, rows, _ROWS))
        written = time.time() - began
        try:
            log.follow(take, lambda: len(seen) >= rows, stage.limit_s)
        except TimeoutError as error:
            raise BenchmarkFailed(str(error)) from error
    # The consumer begins when all is written, and is far quicker than the relay; it waits for it in the end.
    seconds = times[-1] - began
    return {
        "rows": rows,
        "write_rows_per_s": round(rows / written),
        "relay_rows_per_s": round(rows / seconds),
        "left_when_written": seconds > written,
        "copies": len(times) - len(seen),
    }


def _id(message: Message) -> str:
    value = dict(message.headers() or [])["ce_id"]
    return str(uuid.UUID(value.decode() if isinstance(value, bytes) else str(value)))
