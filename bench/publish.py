"""``python -m bench.publish``: what one event costs a service's transaction.

A transaction of three statements (lock a customer, insert an order, update the customer) against the same one with
``outbox.publish`` in it, on the PostgreSQL of ``DATABASE_URL`` (``make up``, or ``python -m deploy up --only stack``),
in a database of its own. The two alternate, transaction by transaction, so that whatever else the machine does hits
both. The schema's id is cached, as it is in a service after its first event. Prints one line of JSON; exits 1 when the
overhead at the median is over ``--limit``.
"""

import argparse
import json
import os
import statistics
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal

from sqlalchemy import Connection, Engine, create_engine, make_url, text
from sqlalchemy.pool import NullPool

from participant import event_type, migrations, outbox
from participant.settings import sqlalchemy_url
from schemas import Codec
from schemas.registry import MemoryRegistry

#: Percent of the median without an event (issue 6, point 2).
LIMIT = 15.0
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


def measure(engine: Engine, transactions: int) -> tuple[list[float], list[float]]:
    """Return the seconds of each transaction without, and with, an event."""
    codec = Codec(MemoryRegistry())

    def without(number: int) -> None:
        with engine.begin() as connection:
            _place(connection, number)

    def with_event(number: int) -> None:
        with engine.begin() as connection:
            outbox.publish(connection, _place(connection, number), codec=codec)

    kinds: tuple[tuple[Callable[[int], None], list[float]], ...] = ((without, []), (with_event, []))
    for number in range(WARM_UP + transactions):
        # Turn and turn about which one is first.
        for run, times in kinds if number % 2 else kinds[::-1]:
            began = time.perf_counter()
            run(number)
            if number >= WARM_UP:
                times.append(time.perf_counter() - began)
    return kinds[0][1], kinds[1][1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database-url", default=os.environ.get("DATABASE_URL"), help="default: DATABASE_URL")
    parser.add_argument("--transactions", type=int, default=3000, help="of each kind")
    parser.add_argument("--limit", type=float, default=LIMIT, help="percent at the median")
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
        without, with_event = measure(engine, arguments.transactions)
        engine.dispose()
    finally:
        with admin.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
        admin.dispose()
    medians = statistics.median(without), statistics.median(with_event)
    overhead = (medians[1] / medians[0] - 1) * 100
    result = {
        "bench": "publish",
        "transactions_of_each_kind": arguments.transactions,
        "median_ms_without": round(medians[0] * 1000, 3),
        "median_ms_with_one_event": round(medians[1] * 1000, 3),
        "p95_ms_without": round(statistics.quantiles(without, n=20)[-1] * 1000, 3),
        "p95_ms_with_one_event": round(statistics.quantiles(with_event, n=20)[-1] * 1000, 3),
        "overhead_percent_at_median": round(overhead, 1),
        "limit_percent": arguments.limit,
        "ok": overhead <= arguments.limit,
    }
    print(json.dumps(result))
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
