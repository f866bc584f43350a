"""Events of the tests: two versions of one type, as an older and a newer service know it."""

from dataclasses import dataclass
from typing import Any

from participant import EventType
from schemas.derivation import schema_of


@dataclass(frozen=True)
class OrderPlacedBefore:
    order_id: str
    customer: str
    number: int
    wish: str | None = None


@dataclass(frozen=True)
class OrderPlaced:
    order_id: str
    customer: str
    number: int
    wish: str | None = None
    vat: int = 19


@dataclass(frozen=True)
class OrderSeen:
    order_id: str


def order_placed(cls: type, topic: str) -> EventType:
    """The type, whichever its version; a name of its own for each topic, so that tests do not meet in the registry."""
    name = f"test.{topic}.OrderPlaced"
    return EventType(name, schema_of(cls, name), topic, "customer", cls)


def order_seen(topic: str) -> EventType:
    name = f"test.{topic}.OrderSeen"
    return EventType(name, schema_of(OrderSeen, name), f"{topic}.seen", "order_id", OrderSeen)


def order(number: int, **more: Any) -> OrderPlaced:
    return OrderPlaced(**{"order_id": f"o{number}", "customer": f"c{number % 7}", "number": number, **more})
