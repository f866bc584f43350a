"""What a service's own code has computed wrongly is refused, and named, and never becomes null."""

import math
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import uuid4

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from participant import OutboxClient
from participant.changes import Change, ChangeKind, Resource, changes_from, encode
from participant.command import Command, InvalidResult, Operation, reply_from
from participant.definitions import InvalidSaga
from participant.definitions import Step as TypedStep
from participant.json_text import NotJson, dumps
from participant.outbox_client import Invalid
from participant.sagas import Step, started
from participant.two_phase import InvalidChange

NO_NUMBERS = [math.nan, math.inf, -math.inf]
RESOURCES = {"meter": Resource(apply=lambda connection, change: None)}


@dataclass
class Reading:
    value: float | None


class Limit(Enum):
    NONE = math.inf


@pytest.mark.parametrize("number", NO_NUMBERS)
@pytest.mark.parametrize(
    ("value", "field"),
    [
        (lambda n: n, "body"),
        (lambda n: {"a": None, "b": {"c": [1, None, n]}}, "body.b.c[2]"),
        (lambda n: [{"a": 1}, ({"b": n},)], "body[1][0].b"),
        (lambda n: {"r": [Reading(None), Reading(n)]}, "body.r[1].value"),
        (lambda n: {"limit": Limit.NONE}, "body.limit"),
    ],
)
def test_a_float_that_is_no_number_is_named(value: Any, field: str, number: float) -> None:
    with pytest.raises(NotJson) as told:
        dumps(value(number), "body")
    assert told.value.field == field
    assert "finite" in told.value.rule


def test_what_orjson_does_not_know_is_refused_too() -> None:
    with pytest.raises(NotJson, match="body must be JSON"):
        dumps({"a": object()}, "body")
    assert dumps({"a": Decimal("NaN")}, "body", default=str) == b'{"a":"NaN"}'


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | st.sampled_from(["", "null", "NaN"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["a", "null", "c"]), inner),
    max_leaves=12,
)


@given(_JSON)
def test_what_passes_comes_back_as_it_was_and_nothing_else_is_refused(value: Any) -> None:
    try:
        encoded = dumps(value, "v")
    except NotJson:
        assert "nan" in repr(value) or "inf" in repr(value)
    else:
        assert orjson.loads(encoded) == value


@pytest.mark.parametrize("number", NO_NUMBERS)
def test_every_way_in_refuses_it_and_names_the_field(number: float) -> None:
    with OutboxClient("tests", "http://127.0.0.1:9", retry_seconds=0) as client, pytest.raises(Invalid) as refused:
        client.send_message("billing", {"price": number})
    [(field, rule)] = refused.value.errors
    assert field == "payload.content.price" and "finite" in rule and field in str(refused.value)

    operation = {"resource_id": 1, "operation": "create", "data": {"kwh": number}}
    with pytest.raises(InvalidChange) as changed:
        changes_from("t", [operation | {"resource_id": 0, "data": {}}, operation], RESOURCES)
    assert changed.value.field == "operations[1].data.kwh"
    with pytest.raises(InvalidChange) as changed:
        encode([Change("t", "meter", "1", ChangeKind.CREATE, {"kwh": number})])
    assert changed.value.field == "operations[0].data.kwh"

    with pytest.raises(NotJson) as given_step:
        started(uuid4(), "s", [Step("a", {}), Step("b", {"x": [number]})])
    assert given_step.value.field == "steps[1].payload.x[0]"
    with pytest.raises(NotJson, match=r"input\.x must be"):
        started(uuid4(), "s", [Step("a", {})], input={"x": number})
    with pytest.raises(InvalidSaga, match=r"step .a.: payload\.x: .* is no JSON number"):
        TypedStep("a", service="s", payload={"x": number})

    command = Command("c", uuid4(), "order", "bill", "bill", Operation.ACTION)
    with pytest.raises(InvalidResult, match=r"'bill'.*result\.total must be"):
        reply_from(command, {"total": number})
