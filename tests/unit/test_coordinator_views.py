"""How REST shows a saga's row, and the marks in the list of sagas."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.models import SagaView
from coordinator.views import SagaRow, current_step_index, names, view
from participant.sagas import Step, started
from saga_processors.saga import SagaState, StepState
from web import cursor
from web.durations import wait_seconds
from web.problems import Malformed

AT = datetime(2026, 11, 23, 10, 0, 0, 250_000, tzinfo=UTC)
AT_MS = int(AT.timestamp() * 1000)


def row(state: SagaState, progress: dict[str, Any] | None, steps: int = 2) -> SagaRow:
    record = started(uuid4(), "order", [Step("billing", payload={"n": i}) for i in range(steps)])
    return SagaRow(uuid4(), "order", state, record, progress, False, False, AT, AT)


def shown(saga: SagaRow) -> dict[str, Any]:
    body = orjson.dumps(view(saga))
    SagaView.model_validate_json(body)
    whole: dict[str, Any] = orjson.loads(body)
    return whole


def test_a_saga_that_no_processor_has_seen_has_pending_steps() -> None:
    document = shown(row(SagaState.STARTED, None))
    assert document["state"] == "STARTED" and document["current_step_index"] == 0
    assert [step["state"] for step in document["steps"]] == ["PENDING", "PENDING"]
    assert [step["id"] for step in document["steps"]] == ["step-1", "step-2"]
    assert document["steps"][1]["depends_on"] == ["step-1"]
    assert document["steps"][1]["payload"] == {"n": 1} and document["steps"][1]["result"] is None
    assert document["created_at"] == "2026-11-23T10:00:00.250000Z"


def test_progress_is_told_with_times_and_parsed_results() -> None:
    executed = {"state": "EXECUTED", "attempt": 2, "result": '{"big":12345678901234567890123}', "ended_at": AT_MS}
    document = shown(row(SagaState.EXECUTING, {"steps": [executed, {}], "created_at": 0, "updated_at": 0}))
    assert document["steps"][0]["attempt"] == 2
    assert document["steps"][0]["ended_at"] == "2026-11-23T10:00:00.250000Z"
    assert document["steps"][0]["result"]["big"] == pytest.approx(12345678901234567890123)
    assert document["current_step_index"] == 1


#: Valid JSON, and no definition: of an older or newer version, or of somebody's UPDATE.
BROKEN: list[Any] = [None, [], {}, 7, "text", {"steps": None}, {"steps": [{}]}, {"steps": [{"name": "a"}], "input": 1}]


@pytest.mark.parametrize("definition", BROKEN)
@pytest.mark.parametrize("progress", [None, {"steps": []}, {"steps": 7}, ["x"]])
@pytest.mark.parametrize("state", SagaState)
def test_a_saga_whose_definition_cannot_be_read_is_shown_without_steps(
    definition: Any, progress: Any, state: SagaState
) -> None:
    broken = replace(row(state, progress), definition=definition)
    document = shown(broken)
    assert document["reason"] == "what is stored of its definition cannot be read"
    assert (document["state"], document["name"], document["steps"]) == (state, broken.name, [])
    assert document["current_step_index"] == 0
    assert names(broken) == []


def test_a_saga_whose_progress_cannot_be_read_is_shown_as_it_began() -> None:
    document = shown(row(SagaState.EXECUTING, {"steps": 7}))
    assert document["reason"] == "what is stored of its progress cannot be read"
    assert [step["state"] for step in document["steps"]] == ["PENDING", "PENDING"]


def test_a_result_keeps_its_digits() -> None:
    executed = {"state": "EXECUTED", "result": "[12345678901234567890123, 1.10]"}
    body = orjson.dumps(view(row(SagaState.EXECUTING, {"steps": [executed, {}]})))
    assert b"[12345678901234567890123, 1.10]" in body


@pytest.mark.parametrize("result", ["no json", "NaN", "", "[" * 5000])
def test_a_result_that_is_no_json_is_shown_as_text(result: str) -> None:
    executed = {"state": "EXECUTED", "result": result}
    assert shown(row(SagaState.EXECUTING, {"steps": [executed, {}]}))["steps"][0]["result"] == result


def test_a_result_nested_to_the_limit_of_the_participants_is_shown() -> None:
    result = "[" * 254 + "]" * 254
    executed = {"state": "EXECUTED", "result": result}
    assert result.encode() in orjson.dumps(view(row(SagaState.EXECUTING, {"steps": [executed, {}]})))


P, X, E, C, D, F = (
    StepState.PENDING,
    StepState.EXECUTING,
    StepState.EXECUTED,
    StepState.COMPENSATING,
    StepState.COMPENSATED,
    StepState.FAILED,
)


@pytest.mark.parametrize(
    ("state", "steps", "index"),
    [
        (SagaState.STARTED, [P, P], 0),
        (SagaState.EXECUTING, [E, X, P], 1),
        (SagaState.EXECUTING, [E, P, P], 1),
        (SagaState.COMPLETED, [E, E, E], 2),
        (SagaState.COMPENSATING, [E, C, F], 1),
        (SagaState.COMPENSATING, [E, E, F], 1),
        (SagaState.FAILED, [D, D, F], 2),
        (SagaState.FAILED, [D, P, P], 0),
    ],
)
def test_the_current_step(state: SagaState, steps: list[StepState], index: int) -> None:
    assert current_step_index(state, steps) == index


@given(st.sampled_from(SagaState), st.lists(st.sampled_from(StepState), min_size=1, max_size=6))
def test_the_current_step_is_always_a_step(state: SagaState, steps: list[StepState]) -> None:
    assert 0 <= current_step_index(state, steps) < len(steps)


@pytest.mark.parametrize(
    ("text", "seconds"), [(None, 0), ("30s", 30), ("30", 30), ("500ms", 0.5), ("1m", 60), ("9m", 60), ("0", 0)]
)
def test_wait_is_a_time_up_to_the_limit(text: str | None, seconds: float) -> None:
    assert wait_seconds(text, 60) == seconds


@pytest.mark.parametrize("text", ["", "-1", "1w", "s", "1 s", "nan", "1e3", "٣s", "9" * 400])
def test_another_wait_is_malformed(text: str) -> None:
    with pytest.raises(Malformed):
        wait_seconds(text, 60)


@given(st.datetimes(min_value=datetime(1, 1, 2), max_value=datetime(9999, 12, 30)), st.uuids())
def test_a_cursor_comes_back_as_it_was(at: datetime, saga_id: UUID) -> None:
    assert cursor.decode(cursor.encode(at.replace(tzinfo=UTC), saga_id)) == (at.replace(tzinfo=UTC), saga_id)


@given(st.text(max_size=60))
def test_any_other_cursor_is_malformed(text: str) -> None:
    try:
        place = cursor.decode(text)
    except Malformed:
        return
    assert cursor.encode(*place)
