"""How `fluxora saga show` draws a saga."""

from datetime import UTC, datetime, timedelta
from io import StringIO
from typing import Any, cast

import pytest
from rich.console import Console

from fluxora.saga_cli import draw
from fluxora.timeline import Span, Timeline, Work, duration, timeline
from participant.saga_client import SagaStatus

START = datetime(2026, 11, 23, 10, tzinfo=UTC)


def at(seconds: float) -> str:
    return (START + timedelta(seconds=seconds)).isoformat().replace("+00:00", "Z")


def entry(seconds: float, type: str, input: Any = None, *effects: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "offset": int(seconds * 1000),
        "at": at(seconds),
        "type": f"fluxora.{type}",
        "input": input or {},
        "verdict": "APPLIED",
        "reason": None,
        "state": "EXECUTING",
        "effects": list(effects),
    } | more


def sent(step: str, attempt: int = 1, operation: str = "ACTION") -> dict[str, Any]:
    return {"send": operation, "step": step, "attempt": attempt}


def told(type: str, step: str | None = None, reason: str | None = None) -> dict[str, Any]:
    event: dict[str, Any] = {"publish": type, "sequence": 1, "state": "EXECUTING"}
    return event | ({} if step is None else {"step": step}) | ({} if reason is None else {"reason": reason})


def reply(step: str, outcome: str, operation: str = "ACTION", **more: Any) -> dict[str, Any]:
    return {"step": step, "operation": operation, "attempt": 1, "outcome": outcome, **more}


def saga(state: str, *steps: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "saga_id": "0190c3a2-7d1e-7b4f-9c55-0f2b8f6a1d10",
        "name": "order",
        "version": "3",
        "state": state,
        "steps": list(steps),
        "needs_attention": False,
        "reason": None,
        "created_at": at(0),
    } | changes


def step(id: str, state: str, **changes: Any) -> dict[str, Any]:
    return {"id": id, "service_name": f"{id}-service", "state": state, "skipped": False, "timeout_seconds": 2} | changes


HISTORY = [
    entry(0, "SagaStarted", {}, told("SagaStarted"), sent("reserve")),
    entry(
        0.012,
        "StepReplied",
        reply("reserve", "DONE", result={"order": 5}),
        told("StepExecuted", "reserve"),
        sent("bill"),
    ),
    entry(0.512, "StepReplied", reply("bill", "FAILED", reason="connection refused")),
    entry(0.8, "DeadlinePassed", {"due_at": at(0.8)}, sent("bill", 2)),
    entry(2.8, "DeadlinePassed", {"due_at": at(2.8)}),
    entry(2.9, "StepReplied", reply("bill", "DONE"), verdict="IGNORED", reason="attempt 2 is over"),
    entry(3.0, "RequestMade", {"request": "RETRY", "who": "ada", "why": "it is back"}, sent("bill", 3)),
    entry(
        3.2,
        "StepReplied",
        reply("bill", "REFUSED", reason="no credit"),
        told("StepFailed", "bill", "no credit"),
        told("SagaCompensating", reason="bill: no credit"),
        told("StepCompensating", "reserve"),
        sent("reserve", 1, "COMPENSATION"),
    ),
    entry(
        4.0,
        "StepReplied",
        reply("reserve", "DONE", "COMPENSATION"),
        told("StepCompensated", "reserve"),
        told("SagaFailed", reason="bill: no credit"),
    ),
]
FAILED = saga(
    "FAILED",
    step("reserve", "COMPENSATED", action_endpoint="/reserve", compensation_endpoint="/release"),
    step("bill", "FAILED"),
    reason="bill: no credit",
)


def drawn(width: int, whole: dict[str, Any], line: Timeline) -> str:
    out = StringIO()
    draw(cast(SagaStatus, whole), line, Console(file=out, width=width))
    return out.getvalue()


def test_each_attempt_answer_and_wait_is_a_moment_with_its_time() -> None:
    line = timeline(FAILED, HISTORY, START)
    assert [(round(moment.at, 3), moment.step, moment.what) for moment in line.moments] == [
        (0.0, None, "started"),
        (0.0, "reserve", "action 1 → reserve-service /reserve"),
        (0.012, "reserve", 'executed after 12 ms  {"order":5}'),
        (0.012, "bill", "action 1 → bill-service"),
        (0.512, "bill", "failed after 500 ms: connection refused"),
        (0.8, "bill", "action 2 → bill-service after a wait of 288 ms"),
        (2.8, "bill", "no answer to action 2 in 2.00 s"),
        (2.9, "bill", "answer to action 1 ignored: attempt 2 is over"),
        (3.0, None, "retry asked for by ada (it is back)"),
        (3.0, "bill", "action 3 → bill-service after a wait of 200 ms"),
        (3.2, "bill", "refused after 200 ms: no credit"),
        (3.2, None, "turns round: bill: no credit"),
        (3.2, "reserve", "compensation 1 → reserve-service /release"),
        (4.0, "reserve", "compensated after 800 ms"),
        (4.0, None, "FAILED, everything is undone: bill: no credit"),
    ]
    assert line.seconds == 4.0
    assert [span.work for span in line.spans["bill"]] == [
        Work.ACTION, Work.WAIT, Work.ACTION, Work.WAIT, Work.ACTION
    ]  # fmt: skip
    assert line.spans["reserve"] == [Span(Work.ACTION, 0.0, 0.012), Span(Work.COMPENSATION, 3.2, 4.0)]


def test_the_bars_show_when_and_how_long() -> None:
    line = timeline(FAILED, HISTORY, START)
    # Ten characters a second; the 12 ms that are over at once still show.
    assert line.bar("reserve", 40) == "━" + " " * 31 + "◂" * 8
    assert line.bar("bill", 40) == "━━━━━···" + "━" * 20 + "··" + "━━" + " " * 8


@pytest.mark.parametrize("width", [80, 120])
def test_it_is_readable_however_wide_the_terminal_is(width: int) -> None:
    long = "the service said: " + "no credit " * 30
    history = [*HISTORY[:-2], entry(3.2, "StepReplied", reply("bill", "REFUSED", reason=long))]
    whole = FAILED | {"reason": long, "steps": [*FAILED["steps"], step("x" * 100, "PENDING", skipped=True)]}
    text = drawn(width, whole, timeline(whole, history, START + timedelta(seconds=4)))
    assert max(len(line) for line in text.splitlines()) <= width
    assert whole["saga_id"] in text and "+288 ms" not in text and "after a wait of 288 ms" in text
    assert "no credit" in text


def test_what_is_under_way_lasts_until_now() -> None:
    running = saga("EXECUTING", step("reserve", "EXECUTED"), step("bill", "EXECUTING"))
    line = timeline(running, HISTORY[:2], START + timedelta(seconds=1.5))
    assert line.seconds == 1.5 and line.spans["bill"] == [Span(Work.ACTION, 0.012, 1.5)]
    waiting = timeline(running, HISTORY[:3], START + timedelta(seconds=1.5))
    assert waiting.spans["bill"] == [Span(Work.ACTION, 0.012, 0.512), Span(Work.WAIT, 0.512, 1.5)]


def test_a_skipped_step_is_at_its_end_with_who_and_why() -> None:
    history = [
        *HISTORY[:2],
        entry(
            5,
            "RequestMade",
            {"request": "SKIP", "step": "bill", "who": "ada"},
            told("StepExecuted", "bill"),
            told("SagaCompleted"),
        ),
    ]
    whole = saga("COMPLETED", step("reserve", "EXECUTED"), step("bill", "EXECUTED", skipped=True))
    line = timeline(whole, history, START + timedelta(days=1))
    assert line.seconds == 5 and line.spans["bill"] == [Span(Work.ACTION, 0.012, 5.0)]
    assert [moment.what for moment in line.moments][-2:] == ["skip asked for by ada", "COMPLETED"]
    assert "EXECUTED, skipped" in drawn(80, whole, line)


def test_a_refused_request_and_an_unknown_input_are_shown() -> None:
    history = [
        HISTORY[0],
        entry(1, "RequestMade", {"request": "CANCEL", "who": "ada"}, verdict="REJECTED", reason="past the pivot"),
        entry(2, "NewThing", {"a": 1}, verdict="POISON", reason="nobody knows it"),
    ]
    line = timeline(saga("EXECUTING", step("reserve", "EXECUTING")), history, START + timedelta(seconds=2))
    assert [moment.what for moment in line.moments][-2:] == [
        "cancel asked for by ada: rejected: past the pivot",
        "NewThing: POISON: nobody knows it",
    ]


def test_a_saga_that_no_processor_has_seen_is_drawn_empty() -> None:
    whole = saga("STARTED", step("reserve", "PENDING"))
    line = timeline(whole, [], START)
    assert line.bar("reserve", 10) == " " * 10
    assert "STARTED" in drawn(80, whole, line)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"),
        (0.0124, "12 ms"),
        (0.9996, "1.00 s"),
        (61.5, "61.50 s"),
        (99.999, "1 m 40 s"),
        (125, "2 m 05 s"),
        (7 * 3600 + 90, "7 h 01 m"),
        (49 * 3600, "2 d 1 h"),
    ],
)
def test_a_duration_is_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text
