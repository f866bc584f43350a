"""The consumer that the event tests run as a process: ``python event_consumer.py GROUP TOPIC``."""

import sys
import time

from sqlalchemy import Connection, text

from participant import Consumer, Event, outbox
from tests.integration.event_samples import OrderPlaced, order_placed, order_seen

group, topic = sys.argv[1:]
consumer = Consumer("billing", group=group)


@consumer.on(order_placed(OrderPlaced, topic))
def see(connection: Connection, event: Event) -> None:
    order = event.data
    connection.execute(
        text("INSERT INTO seen (order_id, customer, number, vat) VALUES (:id, :customer, :number, :vat)"),
        {"id": order.order_id, "customer": order.customer, "number": order.number, "vat": order.vat},
    )
    outbox.publish(connection, {"order_id": order.order_id}, type=order_seen(topic))
    if order.wish == "raise":
        raise ValueError("as asked")
    if order.wish == "raise until row":
        assert connection.execute(text("SELECT count(*) FROM mended")).scalar_one(), "not mended yet"
    if order.wish == "sleep":
        time.sleep(1)


consumer.run()
