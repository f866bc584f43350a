"""``python -m tests.torture.listener``: a consumer of the load's events, whose effects are rows to count.

The publisher is the load itself (``clients``): a row of ``orders`` and the event, in one transaction of the ledger
services' database.
"""

import contextlib
import os
import sys
from dataclasses import dataclass

import psycopg
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from sqlalchemy import Connection, text

from participant import Consumer, Event, event_type

TOPIC = "torture.orders"
GROUP = "torture-listener.events"
#: Messages for this destination go to its topic.
POST = "torture-post"
TABLES = """
    CREATE TABLE IF NOT EXISTS orders (label text PRIMARY KEY, at timestamptz DEFAULT clock_timestamp());
    CREATE TABLE IF NOT EXISTS heard (place bigserial, label text, stream text, number int);
"""
_HEAR = text("INSERT INTO heard (label, stream, number) VALUES (:label, :stream, :number)")


@event_type("torture.OrderPlaced", topic=TOPIC, key="stream")
@dataclass(frozen=True)
class OrderPlaced:
    label: str
    stream: str
    number: int


def listener() -> Consumer:
    consumer = Consumer("torture-listener", group=GROUP)

    @consumer.on(OrderPlaced)
    def hear(connection: Connection, event: Event) -> None:
        order = event.data
        connection.execute(_HEAR, {"label": order.label, "stream": order.stream, "number": order.number})

    return consumer


def make_tables_and_topics() -> None:
    with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
        connection.execute(TABLES)
    admin = AdminClient({"bootstrap.servers": os.environ["KAFKA_BOOTSTRAP_SERVERS"]})
    topics = [NewTopic(TOPIC, 3, 1), NewTopic(f"{POST}.commands", 1, 1), NewTopic(f"{POST}.messages", 3, 1)]
    for made in admin.create_topics(topics).values():
        with contextlib.suppress(KafkaException):  # it is there already
            made.result(30)


if __name__ == "__main__":
    if sys.argv[1:] == ["tables"]:
        make_tables_and_topics()
    else:
        listener().run()
