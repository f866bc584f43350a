"""Which function handles which event, and the events as it gets them."""

import hashlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import quote

from confluent_kafka import Message

from participant.command import ID_LIMIT
from participant.events import EventType
from participant.handlers import InvalidService
from participant.stream import Place, header, offset_of, place_of
from schemas import Codec, UndecodableRecord


@dataclass(frozen=True, slots=True, eq=False)
class Event:
    """An event, as a handler gets it."""

    #: an instance of the declared class, or a dict
    data: Any
    #: full name of its record
    type: str
    #: ``ce_id``; none from producers that know nothing of CloudEvents
    id: str | None
    #: ``ce_source``
    source: str | None
    #: ``ce_time``
    time: datetime | None
    #: the Kafka key as text, bytes that are no UTF-8 escaped
    key: str | None
    topic: str
    partition: int
    offset: int
    #: of the record, in ms since the epoch
    timestamp_ms: int = 0
    #: W3C Trace Context of whoever published it
    traceparent: str | None = None
    #: the record itself, for the dead letter; none in tests
    record: Message | None = field(default=None, repr=False)

    @property
    def place(self) -> Place:
        return self.topic, self.partition

    def inbox_key(self, group: str) -> str:
        """What the inbox knows it by, the same for every copy.

        CloudEvents: source and id together name an event. A record without them is named by its place and, because a
        topic may be deleted and made anew, its time.
        """
        own = quote(group, safe="")
        if self.id is None:
            key = f"record|{own}|{self.topic}|{self.partition}|{self.offset}|{self.timestamp_ms}"
        else:
            key = f"event|{own}|{quote(self.source or '', safe='/:')}|{self.id}"
        return key if len(key) <= ID_LIMIT else f"sha256|{own[:100]}|{hashlib.sha256(key.encode()).hexdigest()}"


@dataclass(frozen=True, slots=True, eq=False)
class Subscription:
    """A function of the service. ``batch``: it takes a list of events."""

    call: Callable[..., Any]
    batch: bool
    #: none: events are dicts, as they were written
    type: EventType | None


class Subscriptions:
    """The registry of one consumer."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], Subscription] = {}

    @property
    def topics(self) -> list[str]:
        return sorted({topic for topic, _ in self._known})

    @property
    def types(self) -> list[EventType]:
        return [one.type for one in self._known.values() if one.type is not None]

    def add(self, topic: str, name: str, subscription: Subscription) -> None:
        if not topic or not name:
            raise InvalidService("a handler of events needs the type's full name and its topic")
        if (topic, name) in self._known:
            raise InvalidService(f"{name} of the topic {topic} has two handlers")
        if inspect.iscoroutinefunction(subscription.call):
            raise InvalidService(f"the handler of {name} is async: handlers are plain functions")
        self._known[topic, name] = subscription

    def find(self, topic: str, name: str) -> Subscription | None:
        return self._known.get((topic, name))

    def event(self, codec: Codec, message: Message) -> Event:
        """Return a record's event; its data is the record's dict if nobody subscribed to it.

        Raises:
            UndecodableRecord: it must not reach a handler.
            RegistryUnavailable: as the codec does.
        """
        name, record = codec.decode(message.value())
        (topic, partition), offset = place_of(message), offset_of(message)
        return Event(
            data=self.data(topic, name, record),
            type=name,
            id=header(message, "ce_id") or None,
            source=header(message, "ce_source"),
            time=_time(header(message, "ce_time")),
            key=_text(message.key()),
            topic=topic,
            partition=partition,
            offset=offset,
            timestamp_ms=message.timestamp()[1],
            traceparent=header(message, "traceparent"),
            record=message,
        )

    def data(self, topic: str, name: str, record: dict[str, Any]) -> Any:
        """Return a decoded record as its handler gets it. Raises UndecodableRecord if the class refuses it."""
        found = self.find(topic, name)
        if found is None or found.type is None:
            return record
        try:
            return found.type.event(record)
        except Exception as error:  # whatever the class's own checks raise
            raise UndecodableRecord(f"{name}: its class refuses the record: {error!r}") from error


def rounds(
    events: Sequence[Event], find: Callable[[Event], Subscription]
) -> list[list[tuple[Subscription, list[Event]]]]:
    """Group events by handler, without reordering any key.

    An event joins the round of the one before it with its key if both have the same handler, else the next round. So a
    batch handler gets as many events as possible, those of one key in their order.
    """
    grouped: list[dict[Subscription, list[Event]]] = []
    last: dict[tuple[Place, str | None], tuple[int, Subscription]] = {}
    for event in events:
        handler = find(event)
        key = (event.place, event.key)
        number, before = last.get(key, (0, handler))
        if before is not handler:
            number += 1
        last[key] = number, handler
        while len(grouped) <= number:
            grouped.append({})
        grouped[number].setdefault(handler, []).append(event)
    return [list(one.items()) for one in grouped]


def _text(key: bytes | str | None) -> str | None:
    return key.decode("utf-8", "backslashreplace") if isinstance(key, bytes) else key


def _time(text: str | None) -> datetime | None:
    try:
        return None if text is None else datetime.fromisoformat(text)
    except ValueError:
        return None
