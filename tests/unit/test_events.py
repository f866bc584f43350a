"""Types of events: the schema of a dataclass, what fits it, and what is refused before a row is written."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from decimal import Decimal
from enum import Enum, StrEnum
from typing import Annotated, Any
from uuid import UUID, uuid4

import fastavro
import pytest
from hypothesis import given
from hypothesis import strategies as st

from participant import Event, EventType, InvalidService, event_type, outbox
from participant.consumer import Consumer
from participant.handling import current_traceparent, handling
from participant.subscriptions import Subscription, rounds
from schemas import Codec, InvalidSchema, RegistryUnavailable, UndecodableRecord, WrongShape
from schemas.derivation import Digits, schema_of
from schemas.registry import MemoryRegistry


class Size(Enum):
    SMALL = "SMALL"
    LARGE = "LARGE"


class Colour(StrEnum):
    RED = "red"


@dataclass(frozen=True)
class Line:
    sku: str
    quantity: int
    sizes: list[Size] = field(default_factory=list)


@event_type("test.shop.OrderPlaced", topic="orders", key="order_id")
@dataclass(frozen=True)
class OrderPlaced:
    order_id: UUID
    total: Annotated[Decimal, Digits(12, 2)]
    exact: Decimal
    placed_at: datetime
    due: date
    at: time
    paid: bool
    weight: float
    raw: bytes
    lines: list[Line]
    labels: dict[str, str]
    first: Line | None = None
    gift: Line | None = None
    colour: Colour = Colour.RED
    size: Size | None = Size.SMALL
    note: str | None = None


def order(**changes: Any) -> OrderPlaced:
    line = Line("a", 2, [Size.LARGE])
    values: dict[str, Any] = {
        "order_id": uuid4(),
        "total": Decimal("12.50"),
        "exact": Decimal("0.000000001"),
        "placed_at": datetime(2026, 11, 23, 7, 0, 0, 123456, tzinfo=UTC),
        "due": date(2026, 11, 24),
        "at": time(7, 30, 0, 5),
        "paid": True,
        "weight": 1.5,
        "raw": b"\0\xff",
        "lines": [line],
        "labels": {"a": "b"},
        "first": line,
    }
    return OrderPlaced(**{**values, **changes})


class Outbox:
    """A connection that keeps what is written to it."""

    def __init__(self) -> None:
        self.rows: list[tuple[Any, ...]] = []

    def exec_driver_sql(self, statement: str, row: tuple[Any, ...]) -> None:
        self.rows.append(row)


@pytest.fixture
def connection() -> Any:
    return Outbox()


@pytest.fixture
def codec() -> Codec:
    return Codec(MemoryRegistry())


def test_an_event_of_every_type_comes_back_as_it_was(connection: Any, codec: Codec) -> None:
    sent = order()
    outbox.publish(connection, sent, codec=codec)
    (row,) = connection.rows
    _, name, key, _, payload, topic, *_ = row
    assert (name, key, topic) == ("test.shop.OrderPlaced", str(sent.order_id), "orders")
    consumer = Consumer("billing")
    consumer.on(OrderPlaced)(lambda connection, event: None)
    got, record = codec.decode(payload)
    assert consumer.subscriptions.data(topic, got, record) == sent


def test_the_derived_schema_is_valid_avro_and_stays_as_it_is() -> None:
    schema = schema_of(OrderPlaced, "test.shop.OrderPlaced")
    fastavro.parse_schema(json.loads(json.dumps(schema)))
    fields = {one["name"]: one for one in schema["fields"]}
    assert fields["order_id"]["type"] == {"type": "string", "logicalType": "uuid"}
    assert fields["total"]["type"] == {"type": "bytes", "logicalType": "decimal", "precision": 12, "scale": 2}
    assert fields["placed_at"]["type"] == {"type": "long", "logicalType": "timestamp-micros"}
    assert fields["lines"]["type"]["items"]["name"] == "Line"
    assert fields["first"] == {"name": "first", "type": ["null", "test.shop.Line"], "default": None}
    assert fields["size"]["type"] == ["test.shop.Size", "null"], "a default belongs to the first branch"
    assert fields["colour"]["default"] == "red"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"paid": "no"}, r"OrderPlaced\.paid must be True or False, not 'no'"),
        ({"total": Decimal("1.255")}, r"\.total must have at most 12 digits, 2 of them after the point"),
        ({"total": Decimal("99999999999")}, r"\.total must have at most"),
        ({"total": 1.5}, r"\.total must be a Decimal"),
        ({"total": Decimal("NaN")}, "finite"),
        ({"placed_at": datetime(2026, 1, 1)}, r"\.placed_at must carry a time zone"),
        ({"due": datetime(2026, 1, 1, tzinfo=UTC)}, r"\.due must be a date"),
        ({"labels": {"a": 1}}, r"\.labels\['a'\] must be a string"),
        ({"lines": "ab"}, r"\.lines must be a list"),
        ({"lines": [Line("a", 1), Line("b", 1.5)]}, r"\.lines\[1\]\.quantity must be a long"),  # type: ignore[arg-type]
        ({"lines": [Line("a", 1 << 63)]}, r"\.quantity must be a long"),
        ({"lines": [Line("a", 1, ["HUGE"])]}, r"\.sizes\[0\] must be one of SMALL, LARGE"),  # type: ignore[list-item]
        ({"lines": [7]}, r"OrderPlaced\.lines: must be a Line, not 7"),
        ({"order_id": "7"}, r"\.order_id must be a UUID"),
        ({"note": "\ud800"}, r"\.note must be text"),
        ({"weight": True}, r"\.weight must be a number"),
        ({"raw": "text"}, r"\.raw must be bytes"),
        ({"note": "x" * 20_000_000}, "20000.* bytes; 983040 may be, because Kafka refuses larger"),
    ],
)
def test_the_wrong_shape_is_refused_before_a_row_is_written_naming_the_field(
    connection: Any, codec: Codec, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(WrongShape, match=told):
        outbox.publish(connection, order(**changes), codec=codec)
    assert connection.rows == []


SHIPPED = EventType.of(
    {
        "type": "record",
        "name": "OrderShipped",
        "namespace": "test.shop",
        "fields": [
            {"name": "order", "type": {"type": "record", "name": "Order", "fields": [{"name": "id", "type": "long"}]}},
            {"name": "by", "type": ["null", "string", "long"], "default": None},
        ],
    },
    topic="orders",
    key="order.id",
)


@pytest.mark.parametrize(
    ("event", "told"),
    [
        ({"order": {"id": 7}, "to": "x"}, r"OrderShipped\.to is no field"),
        ({"order": {}}, r"OrderShipped\.order\.id is the key: it must be a string"),
        ({"by": "x"}, "is the key"),
        ({"order": {"id": 7}, "by": 1.5}, r"OrderShipped\.by must be"),
        (order(), "an event of type test.shop.OrderShipped is a mapping, not OrderPlaced"),
    ],
)
def test_a_dict_is_held_to_its_schema_as_well(connection: Any, codec: Codec, event: Any, told: str) -> None:
    with pytest.raises(WrongShape, match=told):
        outbox.publish(connection, event, type=SHIPPED, codec=codec)
    assert connection.rows == []
    outbox.publish(connection, {"order": {"id": 7}}, type=SHIPPED, codec=codec)
    assert connection.rows[0][2] == "7"


def test_publishing_what_is_not_declared_says_what_to_do(connection: Any) -> None:
    with pytest.raises(WrongShape, match="declared with @event_type"):
        outbox.publish(connection, {"a": 1})


class Down(MemoryRegistry):
    down = False

    def id_of(self, name: str, schema: str) -> int:
        if self.down:
            raise RegistryUnavailable("down")
        return super().id_of(name, schema)


def test_with_the_registry_down_known_types_go_on_and_unknown_ones_fail_before_the_row(connection: Any) -> None:
    registry = Down()
    codec = Codec(registry)
    outbox.publish(connection, order(), codec=codec)
    registry.down = True
    outbox.publish(connection, order(), codec=codec)
    with pytest.raises(RegistryUnavailable):
        outbox.publish(connection, {"order": {"id": 7}}, type=SHIPPED, codec=codec)
    assert len(connection.rows) == 2


def test_a_handlers_events_carry_its_service_and_the_trace_of_what_it_handles(connection: Any, codec: Codec) -> None:
    with handling("billing", codec, "00-aa-bb-01"):
        outbox.publish(connection, order())
    assert connection.rows[0][6:8] == ("billing", "00-aa-bb-01")
    assert current_traceparent() is None


def test_opentelemetrys_current_span_goes_before_the_command_in_hand(codec: Codec) -> None:
    trace = pytest.importorskip("opentelemetry.trace")
    span = trace.NonRecordingSpan(trace.SpanContext(0xAB, 0xCD, False, trace.TraceFlags(1)))
    with handling("billing", codec, "00-aa-bb-01"), trace.use_span(span):
        assert current_traceparent() == f"00-{0xAB:032x}-{0xCD:016x}-01"


def declare(annotation: Any, key: str = "a", default: Any = ...) -> None:
    body = {"__annotations__": {"a": annotation}}
    if default is not ...:
        body["a"] = default
    event_type("test.Odd", topic="t", key=key)(dataclass(type("Odd", (), body)))


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (lambda: declare(object), r"test\.Odd\.a: .* has no place in Avro"),
        (lambda: declare(int | str), r"test\.Odd\.a: of unions only X \| None"),
        (lambda: declare(dict[int, str]), "has no place"),
        (lambda: declare(tuple[int, ...]), "has no place"),
        (lambda: declare(Enum("Bad", {"X": "not a name"})), r"the values of Bad"),
        (lambda: declare(datetime, default=datetime.now(UTC)), "a datetime cannot be an Avro default"),
        (lambda: declare(str, key="b"), "the key 'b' names no field"),
        (lambda: event_type("no name", topic="t", key="a")(OrderPlaced), "no full name"),
        (lambda: event_type("fluxora.SagaEvent", topic="t", key="note")(OrderPlaced), "the platform's own"),
        (lambda: event_type("test.X", topic="t", key="a")(int), "is no dataclass"),
        (lambda: EventType.of({"type": "enum"}, topic="t", key="a"), "must be an Avro record"),
        (lambda: Consumer("billing").on(Line), "decorate it with @event_type"),
    ],
)
def test_what_avro_cannot_hold_is_refused_when_it_is_declared(bad: Callable[[], object], told: str) -> None:
    with pytest.raises(InvalidSchema, match=told):
        bad()


def test_two_schemas_of_one_name_in_one_process_are_told_apart(codec: Codec) -> None:
    codec.add({"type": "record", "name": "X", "fields": []})
    codec.add({"type": "record", "name": "X", "fields": []})
    with pytest.raises(InvalidSchema, match="another schema"):
        codec.add({"type": "record", "name": "X", "fields": [{"name": "a", "type": "int"}]})
    with pytest.raises(InvalidSchema, match="no valid Avro schema"):
        codec.add({"type": "record", "name": "Y", "fields": [{"name": "a", "type": "integer"}]})


def test_old_and_new_events_are_read_side_by_side_as_the_readers_version() -> None:
    def version(*fields: dict[str, Any]) -> dict[str, Any]:
        return {"type": "record", "name": "test.V", "fields": [{"name": "id", "type": "string"}, *fields]}

    old, new = version(), version({"name": "vat", "type": ["null", "long"], "default": None})
    registry = MemoryRegistry()
    codecs = {name: Codec(registry) for name in ("old", "new", "none")}
    codecs["old"].add(old)
    codecs["new"].add(new)
    written = [codecs["old"].encode("test.V", {"id": "1"}), codecs["new"].encode("test.V", {"id": "2", "vat": 7})]
    assert [codecs["new"].decode(one)[1] for one in written] == [{"id": "1", "vat": None}, {"id": "2", "vat": 7}]
    assert [codecs["old"].decode(one)[1] for one in written] == [{"id": "1"}, {"id": "2"}]
    assert [codecs["none"].decode(one)[1] for one in written] == [{"id": "1"}, {"id": "2", "vat": 7}]
    with pytest.raises(UndecodableRecord):
        codecs["new"].decode(written[1][:-1])


def event(offset: int, key: str | None = "k", *, id: str | None = "1", source: str | None = "s", **more: Any) -> Event:
    return Event({}, more.pop("type", "T"), id, source, None, key, "t", 0, offset, **more)


def test_the_inbox_knows_an_event_by_group_source_and_id_and_else_by_its_place() -> None:
    assert event(1).inbox_key("a") == event(2).inbox_key("a")
    keys = {
        event(1).inbox_key("a"),
        event(1).inbox_key("b"),
        event(1, id="2").inbox_key("a"),
        event(1, source="s|1", id="x").inbox_key("a"),
        event(1, source="s", id="1|x").inbox_key("a"),
        event(1, id=None).inbox_key("a"),
        event(2, id=None).inbox_key("a"),
        event(2, id=None, timestamp_ms=5).inbox_key("a"),
        event(1, id="x" * 5000).inbox_key("a"),
        event(1, id="x" * 5001).inbox_key("a"),
    }
    assert len(keys) == 10
    assert max(map(len, keys)) <= 500


HANDLERS = {name: Subscription(lambda connection, events: None, True, None) for name in "ABC"}


@given(st.lists(st.tuples(st.sampled_from("ABC"), st.sampled_from(["1", "2", None]))))
def test_rounds_keep_the_order_of_every_key_and_lose_nothing(given: list[tuple[str, str | None]]) -> None:
    events = [event(number, key, type=type) for number, (type, key) in enumerate(given)]
    flat = [one for part in rounds(events, lambda one: HANDLERS[one.type]) for _, group in part for one in group]
    assert sorted(one.offset for one in flat) == list(range(len(given)))
    for key in ("1", "2", None):
        offsets = [one.offset for one in flat if one.key == key]
        assert offsets == sorted(offsets)


def test_one_type_makes_one_batch() -> None:
    events = [event(number, str(number % 3), type="A") for number in range(9)]
    ((pair,),) = rounds(events, lambda one: HANDLERS[one.type])
    assert len(pair[1]) == 9


def test_handlers_that_do_not_fit_are_refused_before_anything_starts() -> None:
    consumer = Consumer("billing")
    with pytest.raises(InvalidService, match="there is no handler"):
        consumer.run()
    with pytest.raises(InvalidService, match="its topic"):
        consumer.on("test.T")(lambda connection, event: None)
    consumer.on(OrderPlaced)(lambda connection, event: None)
    with pytest.raises(InvalidService, match="two handlers"):
        consumer.on(OrderPlaced)(lambda connection, event: None)

    async def later(connection: object, event: Event) -> None: ...

    with pytest.raises(InvalidService, match="async"):
        consumer.on(SHIPPED)(later)
    with pytest.raises(InvalidService, match="the service's commands"):
        Consumer("billing", group="billing")
