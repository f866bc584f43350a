"""``python -m bench.publish``: what one event costs a service's transaction.

A transaction of three statements (lock a customer, insert an order, update the customer), the same with
``outbox.publish`` in it, and the same with that INSERT made by the driver alone, its values ready: the floor, below
which no library comes. On the PostgreSQL of ``DATABASE_URL`` (``make up``, or ``python -m deploy up --only stack``), in
a database of its own. The three alternate, transaction by transaction, so that whatever else the machine does hits all.
The schema's id is cached, as it is in a service after its first event. Prints one line of JSON; exits 1 when the
overhead at the median is over ``--limit`` and also over the floor by more than ``--above-floor``.
"""

import argparse
import json
import os
import statistics
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum

from sqlalchemy import Connection, Engine, create_engine, make_url, text
from sqlalchemy.pool import NullPool

from participant import event_type, migrations, outbox
from participant.events import type_of
from participant.settings import sqlalchemy_url
from schemas import Codec
from schemas.registry import MemoryRegistry

#: Percent of the median without an event (issue 6, point 2).
LIMIT = 15.0
#: Percentage points by which it may lie above the floor and be near it.
ABOVE_FLOOR = 10.0
WARM_UP = 200


@event_type("bench.OrderPlaced", topic="bench.orders", key="customer_id")
@dataclass(frozen=True)
class OrderPlaced:
    order_id: uuid.UUID
    customer_id: int
    total: Decimal
    placed_at: datetime
    note: str | None = None


_TABLES = (
    "CREATE TABLE customer (id int PRIMARY KEY, orders int NOT NULL DEFAULT 0, spent numeric NOT NULL DEFAULT 0)",
    "CREATE TABLE orders (id uuid PRIMARY KEY, customer int NOT NULL REFERENCES customer, total numeric NOT NULL)",
    "INSERT INTO customer SELECT generate_series(0, 999)",
)
_LOCK = text("SELECT orders FROM customer WHERE id = :customer FOR UPDATE")
_ORDER = text("INSERT INTO orders VALUES (:id, :customer, :total)")
_COUNT = text("UPDATE customer SET orders = orders + 1, spent = spent + :total WHERE id = :customer")


def _place(connection: Connection, number: int) -> OrderPlaced:
    order = OrderPlaced(uuid.uuid4(), number % 1000, Decimal("12.50"), datetime.now(UTC))
    connection.execute(_LOCK, {"customer": order.customer_id}).one()
    connection.execute(_ORDER, {"id": order.order_id, "customer": order.customer_id, "total": order.total})
    connection.execute(_COUNT, {"total": order.total, "customer": order.customer_id})
    return order


class Kind(StrEnum):
    """What is in the transaction beside its own three statements."""

    WITHOUT = "without"
    #: the same INSERT by the driver alone, its values ready: one more round trip, and the database's work
    FLOOR = "floor"
    EVENT = "with_one_event"


@dataclass(frozen=True, slots=True)
class Sample:
    wall_s: float
    #: of this thread
    cpu_s: float


def measure(engine: Engine, transactions: int) -> dict[Kind, list[Sample]]:
    """Return what each transaction took, by kind."""
    codec = Codec(MemoryRegistry())
    declared = type_of(OrderPlaced)
    codec.add(declared.schema)
    order = OrderPlaced(uuid.uuid4(), 7, Decimal("12.50"), datetime.now(UTC))
    payload = codec.encode(declared.name, declared.record(order))

    def without(number: int) -> None:
        with engine.begin() as connection:
            _place(connection, number)

    def floor(number: int) -> None:
        with engine.begin() as connection:
            key = str(_place(connection, number).customer_id)
            driver = connection.connection.driver_connection
            assert driver is not None
            driver.execute(
                outbox.INSERT_ONE,
                (uuid.uuid4(), declared.name, key, declared.name, payload, declared.topic, "bench", None, outbox.AVRO),
            )

    def with_event(number: int) -> None:
        with engine.begin() as connection:
            outbox.publish(connection, _place(connection, number), codec=codec)

    runs: list[tuple[Kind, Callable[[int], None]]] = [
        (Kind.WITHOUT, without),
        (Kind.FLOOR, floor),
        (Kind.EVENT, with_event),
    ]
    taken: dict[Kind, list[Sample]] = {kind: [] for kind in Kind}
    for number in range(WARM_UP + transactions):
        # Each is first, second and last in turn.
        for kind, run in runs[number % 3 :] + runs[: number % 3]:
            began, cpu = time.perf_counter(), time.thread_time()
            run(number)
            if number >= WARM_UP:
                taken[kind].append(Sample(time.perf_counter() - began, time.thread_time() - cpu))
    return taken


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database-url", default=os.environ.get("DATABASE_URL"), help="default: DATABASE_URL")
    parser.add_argument("--transactions", type=int, default=3000, help="of each kind")
    parser.add_argument("--limit", type=float, default=LIMIT, help="percent at the median")
    parser.add_argument("--above-floor", type=float, default=ABOVE_FLOOR, help="percentage points at the median")
    arguments = parser.parse_args()
    if not arguments.database_url:
        parser.error("DATABASE_URL is not set; `make up` writes it to .run/endpoints.env: source that, or set it")
    name = f"bench_{uuid.uuid4().hex[:10]}"
    url = make_url(arguments.database_url).set(database=name).render_as_string(hide_password=False)
    admin = create_engine(sqlalchemy_url(arguments.database_url), isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    try:
        migrations.upgrade(url)
        engine = create_engine(sqlalchemy_url(url), pool_size=1, max_overflow=0)
        with engine.begin() as connection:
            for statement in _TABLES:
                connection.execute(text(statement))
        taken = measure(engine, arguments.transactions)
        engine.dispose()
    finally:
        with admin.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
        admin.dispose()
    wall = {kind: statistics.median(one.wall_s for one in taken[kind]) for kind in Kind}
    cpu = {kind: statistics.median(one.cpu_s for one in taken[kind]) for kind in Kind}
    overhead, floor = ((wall[kind] / wall[Kind.WITHOUT] - 1) * 100 for kind in (Kind.EVENT, Kind.FLOOR))
    result = {
        "bench": "publish",
        "transactions_of_each_kind": arguments.transactions,
        **{f"median_ms_{kind}": round(wall[kind] * 1000, 3) for kind in Kind},
        **{f"median_cpu_ms_{kind}": round(cpu[kind] * 1000, 3) for kind in Kind},
        "p95_ms_without": _p95(taken[Kind.WITHOUT]),
        "p95_ms_with_one_event": _p95(taken[Kind.EVENT]),
        "overhead_percent_at_median": round(overhead, 1),
        "floor_percent_at_median": round(floor, 1),
        "limit_percent": arguments.limit,
        "target_met": overhead <= arguments.limit,
        "near_the_floor": overhead - floor <= arguments.above_floor,
    }
    print(json.dumps(result))
    return 0 if result["target_met"] or result["near_the_floor"] else 1


def _p95(samples: Sequence[Sample]) -> float:
    return round(statistics.quantiles([one.wall_s for one in samples], n=20)[-1] * 1000, 3)


if __name__ == "__main__":
    sys.exit(main())
