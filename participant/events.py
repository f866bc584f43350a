"""Types of events, as publishers and consumers declare them.

::

    @event_type("shop.orders.OrderPlaced", topic="orders", key="order_id")
    @dataclass(frozen=True)
    class OrderPlaced:
        order_id: UUID
        total: Decimal

    ORDER_SHIPPED = EventType.of_file("schemas/order_shipped.avsc", topic="orders", key="order_id")

    outbox.publish(session, OrderPlaced(…))
    outbox.publish(session, {"order_id": "7"}, type=ORDER_SHIPPED)
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar
from uuid import UUID

from schemas import InvalidSchema, WrongShape
from schemas.derivation import from_record, schema_of, to_record
from schemas.registration import SCHEMAS, full_name

_Class = TypeVar("_Class", bound=type)

#: Where a declared class keeps its type.
_ATTRIBUTE = "__fluxora_event__"


@dataclass(frozen=True, slots=True, eq=False)
class EventType:
    """A kind of event: its Avro schema, where it goes and which of its fields is the key."""

    #: full name of the record; the registry's subject and ``ce_type``
    name: str
    schema: Mapping[str, Any] = field(repr=False)
    topic: str
    #: the field whose value is the Kafka key, with dots into nested records; a string, an integer or a UUID
    key: str
    #: the dataclass, or none for events that are dicts
    cls: type | None = None

    def __post_init__(self) -> None:
        if self.name in SCHEMAS:
            raise InvalidSchema(f"{self.name} is the platform's own; choose another namespace")
        _check_key(self.schema, self.key, self.name)

    @classmethod
    def of(cls, schema: Mapping[str, Any], *, topic: str, key: str) -> Self:
        """Declare a type whose events are dicts, by its Avro schema. Raises InvalidSchema."""
        return cls(full_name(schema), schema, topic, key)

    @classmethod
    def of_file(cls, path: str | Path, *, topic: str, key: str) -> Self:
        """Declare a type whose events are dicts, by its .avsc file. Raises InvalidSchema, OSError."""
        return cls.of(read_schema(path), topic=topic, key=key)

    def record(self, event: object) -> Mapping[str, Any]:
        """Return the event as the record to encode. Raises WrongShape."""
        if isinstance(event, Mapping):
            return event
        if self.cls is not None and isinstance(event, self.cls):
            return to_record(event)
        wanted = "a mapping" if self.cls is None else f"a {self.cls.__name__} or a mapping"
        raise WrongShape(f"an event of type {self.name} is {wanted}, not {event.__class__.__name__}")

    def key_of(self, record: Mapping[str, Any]) -> str:
        """Return the Kafka key of an event. Raises WrongShape."""
        value: Any = record
        for part in self.key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if isinstance(value, (str, UUID)) or (isinstance(value, int) and not isinstance(value, bool)):
            return str(value)
        raise WrongShape(
            f"{self.name}.{self.key} is the key: it must be a string, an integer or a UUID, not {value!r:.60}"
        )

    def event(self, record: Mapping[str, Any]) -> Any:
        """Return a decoded record as handlers get it: the dataclass, or the dict."""
        return record if self.cls is None else from_record(self.cls, record)


def event_type(name: str, *, topic: str, key: str) -> Callable[[_Class], _Class]:
    """Declare a dataclass as a type of event; its Avro schema is derived (``schemas.derivation`` has the mapping).

    Args:
        name: full name of the record, as ``shop.orders.OrderPlaced``; it is the registry's subject and ``ce_type``.
        topic: where its events go.
        key: the field whose value is the Kafka key: events of one key stay in order.

    Raises:
        InvalidSchema: a field has a type without a place in Avro, or ``key`` names no field.
    """

    def declare(cls: _Class) -> _Class:
        setattr(cls, _ATTRIBUTE, EventType(name, schema_of(cls, name), topic, key, cls))
        return cls

    return declare


def type_of(declared: object) -> EventType:
    """Return the type of an EventType, of a declared class or of an instance of one. Raises InvalidSchema."""
    if isinstance(declared, EventType):
        return declared
    cls = declared if isinstance(declared, type) else type(declared)
    # Of this very class: a subclass has other fields and would be sent as its base.
    found = vars(cls).get(_ATTRIBUTE)
    if isinstance(found, EventType):
        return found
    raise InvalidSchema(f"{cls.__name__} is no type of event: decorate it with @event_type(name, topic=…, key=…)")


def declared_type(event: object) -> EventType | None:
    """Return the type of an instance of a declared class, if it is one."""
    found = vars(type(event)).get(_ATTRIBUTE)
    return found if isinstance(found, EventType) else None


def read_schema(path: str | Path) -> Mapping[str, Any]:
    """Read an .avsc file. Raises InvalidSchema, OSError."""
    try:
        schema = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidSchema(f"{path} is no JSON: {error}") from error
    full_name(schema)
    assert isinstance(schema, dict)
    return schema


def _check_key(schema: Mapping[str, Any], key: str, name: str) -> None:
    """Only the first part: what it leads to may be a named type, which the first event tells."""
    first = key.partition(".")[0]
    fields: Iterable[Any] = schema.get("fields", ())
    names = [one.get("name") for one in fields]
    if first not in names:
        raise InvalidSchema(f"{name}: the key {key!r} names no field; there are {', '.join(map(str, names))}")
