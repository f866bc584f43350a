"""Sagas written in Python: what they compile to, and what is refused when they are written."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from examples.energy.definitions import settle_day
from fluxora.blueprints import InvalidBlueprint, load, plan
from participant import definitions
from participant.definitions import Definition, HttpStep, InvalidInput, InvalidSaga, Retry, Step, saga_input
from saga_processors import definition as rules

reserve = Step("reserve", service="stock", payload={"item": saga_input.item, "count": saga_input["count"].default(1)})
pay = Step("pay", service="billing", kind="pivot", payload={"order": reserve.result.orders[0].id})
ship = HttpStep("ship", service="shop", action="/ship", kind="retriable", payload=[reserve.result.weight.default(None)])
place_order = Definition("place-order", "1", [reserve, pay, ship], timeout_seconds=300, example={"item": "pen"})


def test_references_compile_to_what_the_machine_reads() -> None:
    steps = place_order.document()["steps"]
    assert steps[0]["payload"] == {"item": {"$from": "input.item"}, "count": {"$from": "input.count", "default": 1}}
    assert steps[1]["payload"] == {"order": {"$from": "steps.reserve.result.orders.0.id"}}
    assert steps[2]["payload"] == [{"$from": "steps.reserve.result.weight", "default": None}]
    assert steps[2]["action_endpoint"] == "/ship"


def test_the_platform_takes_what_is_compiled() -> None:
    from_definition = plan(place_order, {"item": "pen"})
    from_document = plan({"name": "place-order", "version": "1"} | place_order.document(), {"item": "pen"})
    assert from_definition == from_document
    assert [step.depends_on for step in from_definition.steps] == [(), ("reserve",), ("pay",)]
    assert plan(place_order.compiled(), {"item": "pen"}).steps == from_definition.steps
    plan(settle_day, settle_day.example)


def test_dependencies_are_the_steps_themselves() -> None:
    left = Step("left", service="s", depends_on=())
    right = Step("right", service="s", depends_on=[])
    both = Step("both", service="s", depends_on=(left, right), payload={"l": left.result, "r": right.result})
    steps = plan(Definition("d", "1", [left, right, both])).steps
    assert [step.depends_on for step in steps] == [(), (), ("left", "right")]


def test_the_digest_is_that_of_what_runs() -> None:
    def again(**changes: Any) -> Definition:
        return Definition(**{"name": "d", "version": "1", "steps": [Step("a", service="s")]} | changes)

    assert again().digest == again().digest == again(example=3).digest
    assert again().digest != again(timeout_seconds=5).digest
    assert again().digest != again(steps=[Step("a", service="s", retry=Retry(max_attempts=4))]).digest


def test_a_payload_that_is_changed_afterwards_changes_no_saga() -> None:
    payload = {"item": "pen"}
    step = Step("a", service="s", payload=payload)
    payload["item"] = "ink"
    assert Definition("d", "1", [step]).document()["steps"][0]["payload"] == {"item": "pen"}
    with pytest.raises(AttributeError):
        step.service = "other"  # type: ignore[misc]
    with pytest.raises(AttributeError):
        saga_input.item = 3  # type: ignore[misc]


def other_step() -> Step:
    return Step("other", service="s")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda: Step("a b", service="s"), "a step's name"),
        (lambda: Step("a", service=""), "step 'a': service"),
        (lambda: Step("a", service="s", kind="final"), "step 'a': kind"),  # type: ignore[arg-type]
        (lambda: Step("a", service="s", depends_on="b"), "step 'a': depends_on holds the steps themselves"),  # type: ignore[arg-type]
        (lambda: Step("a", service="s", retry=Retry(max_attempts=0)), "step 'a': retry.max_attempts"),
        (lambda: Step("a", service="s", timeout_seconds=0), "step 'a': timeout_seconds"),
        (lambda: Step("a", service="s", payload={"x": object()}), "step 'a': payload is no JSON"),
        (lambda: Step("a", service="s", payload={"x": float("nan")}), "step 'a': payload.x"),
        (lambda: Step("a", service="s", payload={1: 2}), "step 'a': payload: keys"),
        (lambda: Step("a", service="s", payload={"x": reserve}), "step 'a': payload.x is the step 'reserve'"),
        (lambda: Step("a", service="s", payload={"$from": "input.x"}), "step 'a': payload has a key '$from'"),
        (lambda: Step("a", service="s", payload=f"order {saga_input.id}"), "saga_input.id is known only while"),
        (lambda: saga_input.id + 1, "saga_input.id is known only while"),  # type: ignore[operator]
        (lambda: [*saga_input.items], "saga_input.items is known only while"),  # type: ignore[misc]
        (lambda: saga_input["a.b"], "a key is not empty and has no dot"),
        (lambda: saga_input.default(1).id, "the default comes last"),
        (lambda: Step("a", service="s", payload=saga_input.x.default(saga_input.y)), "a default is a plain value"),
        (
            lambda: HttpStep("a", service="s", action="/do", compensation="/undo", kind="pivot"),
            "step 'a': a pivot step is never undone",
        ),
        (lambda: Definition("d", "", [reserve]), "saga 'd': version"),
        (lambda: Definition("d", "1", []), "at least one step"),
        (lambda: Definition("d", "1", [reserve, reserve]), "two steps are named 'reserve'"),
        (lambda: Definition("d", "1", [pay]), "step 'pay' refers to reserve.result.orders.0.id, which is no step"),
        (
            lambda: Definition("d", "1", [Step("a", service="s", depends_on=(other_step(),))]),
            "step 'a' depends on 'other', which is no step of this saga",
        ),
        (lambda: Definition("d", "1", [pay, reserve]), "step 'pay' is pivot and cannot be undone, so 'reserve'"),
        (
            lambda: Definition("d", "1", [reserve, Step("b", service="s", depends_on=(), payload=reserve.result)]),
            "step 'b' refers to reserve.result, and 'reserve' does not come before it",
        ),
        (
            lambda: Definition("d", "1", [reserve, Step("b", service="s", kind="retriable", payload=reserve.result)]),
            "step 'b' is retriable and cannot fail, so reserve.result needs a .default",
        ),
        (
            lambda: Definition("d", "1", [Step("p", service="s", kind="pivot"), Step("b", service="s")]),
            "step 'p' is pivot and cannot be undone, so 'b'",
        ),
    ],
)
def test_what_is_wrong_is_refused_where_it_is_written(wrong: Callable[[], object], told: str) -> None:
    with pytest.raises(InvalidSaga) as error:
        wrong()
    assert told in str(error.value)


def test_an_input_without_what_a_payload_needs_is_refused_before_anything_is_written() -> None:
    place_order.check_input({"item": "pen"})
    with pytest.raises(InvalidInput, match=r"step 'reserve' needs input\.item"):
        place_order.check_input({"count": 3})
    with pytest.raises(InvalidInput, match="settle-day"):
        settle_day.check_input(None)


def test_it_registers_at_anything_that_takes_registrations() -> None:
    class Registry:
        def register(self, name: str, version: str, definition: Mapping[str, Any]) -> bool:
            self.given = (name, version, definition)
            return True

    registry = Registry()
    place_order.register(registry)
    assert registry.given == ("place-order", "1", place_order.document())


def test_names_and_versions_are_those_of_the_platform() -> None:
    assert definitions.NAME.pattern == rules.NAME.pattern
    assert definitions.VERSION.pattern == rules.VERSION.pattern


def test_a_definition_is_found_by_module_and_attribute() -> None:
    assert load("examples.energy.definitions:settle_day") is settle_day
    for target, told in [
        ("examples.energy.definitions", "module:attribute"),
        ("examples.nowhere:x", "cannot be imported"),
        ("examples.energy.definitions:nobody", "has no nobody"),
    ]:
        with pytest.raises(InvalidBlueprint, match=told):
            load(target)


@pytest.mark.parametrize(
    ("blueprint", "told"),
    [
        (3, "a saga is a Definition"),
        ({"steps": "a"}, "has a list"),
        ({"steps": [{"service": "s"}]}, r"steps\[0\]"),
        ({"steps": [{"service_name": "s", "payload": {"$from": "input.x"}}]}, "input"),
        ({"steps": [{"service_name": "s", "retry": {"max_attempts": 0}}]}, "max_attempts"),
    ],
)
def test_what_the_platform_would_refuse_is_refused_without_it(blueprint: Any, told: str) -> None:
    with pytest.raises(InvalidBlueprint, match=told):
        plan(blueprint)
