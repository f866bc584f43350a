"""Tests of a user's saga: given answers, expect commands. No broker, no database, and time that the test moves.

::

    from fluxora.testing import SagaTest

    def test_a_refused_payment_gives_the_stock_back() -> None:
        with SagaTest(place_order, input={"item": "pen", "customer": "ada"}) as t:
            t.expect("reserve", payload={"item": "pen"})
            t.reply("reserve", {"order_id": 7})
            t.expect("pay", payload={"order": 7})
            t.refuse("pay", "no funds")
            t.expect_compensation("reserve")
            t.reply_compensation("reserve")
            t.expect_failed("no funds")

It plays the machine that runs in production (``saga_processors.saga_machine``), so what passes here is what happens
there. Every command must be expected; at the end of the ``with`` block one that was not is an error. All that goes
wrong is an ``AssertionError`` whose text ends with what has happened so far.
"""

import json
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NoReturn, Self

from fluxora.blueprints import plan
from saga_processors.machine import DeadlinePassed, Request, Verdict
from saga_processors.saga import (
    Input,
    Operation,
    OperatorRequest,
    Outcome,
    PublishEvent,
    Saga,
    SagaStarted,
    SagaState,
    SendCommand,
    StepProgress,
    StepReplied,
)
from saga_processors.saga_machine import advance, payload_of

__all__ = ["SagaTest"]

_ANY = object()


@dataclass(slots=True)
class _Sent:
    """The latest command of one step."""

    operation: Operation
    attempt: int
    payload: Any
    expected: bool = False
    answered: bool = False


class SagaTest:
    """One saga at play. Times are seconds from its start."""

    def __init__(self, saga: Any, input: Any = None) -> None:
        """
        Args:
            saga: a ``Definition``, a list of ``participant.sagas.Step``, or a document with ``steps``.
            input: what it is started with, any JSON.

        Raises:
            fluxora.blueprints.InvalidBlueprint: the platform would refuse it.
        """
        self._definition = plan(saga, input)
        self._names = [step.name for step in self._definition.steps]
        self._now_ms = 0
        self._requests = 0
        self._sent: dict[str, _Sent] = {}
        self._told: list[str] = []
        self._saga: Saga | None = None
        self._put(SagaStarted(self._definition), "the saga begins")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.expect_nothing()

    # What can be seen

    @property
    def state(self) -> str:
        """``EXECUTING``, ``COMPENSATING``, ``COMPLETED`` or ``FAILED``."""
        return self._machine.state.value

    @property
    def now(self) -> float:
        """Seconds since the saga began."""
        return self._now_ms / 1000

    @property
    def needs_attention(self) -> bool:
        return self._machine.needs_attention

    @property
    def transcript(self) -> str:
        """What has happened so far, a line each."""
        return "\n".join(self._told)

    def step_state(self, step: str) -> str:
        """``PENDING``, ``EXECUTING``, ``EXECUTED``, ``COMPENSATING``, ``COMPENSATED`` or ``FAILED``."""
        return self._progress(step).state.value

    # Commands

    def expect(self, step: str, payload: Any = _ANY, *, attempt: int | None = None) -> None:
        """The step's action has been asked for: with this payload, and as this attempt, where they are given."""
        self._expect(step, Operation.ACTION, payload, attempt)

    def expect_compensation(self, step: str, *, attempt: int | None = None) -> None:
        """The step is to be undone."""
        self._expect(step, Operation.COMPENSATION, _ANY, attempt)

    def expect_nothing(self) -> None:
        """No command has been sent beside the ones that were expected."""
        left = [f"the {_words(sent.operation)} of {name}" for name, sent in self._sent.items() if not sent.expected]
        if left:
            self._fail(f"nobody expected {' and '.join(left)}")

    def expect_retry(self, step: str, *, after: float | None = None) -> None:
        """The step waits for its next attempt; move the clock there and expect it.

        Args:
            after: seconds that the wait lasts before jitter, by the retry policy. What jitter may take off is allowed.
        """
        waits = self._progress(step).retry_at
        if waits is None:
            self._fail(f"{step} does not wait for another attempt; it is {self.step_state(step)}")
        seconds = (waits - self._now_ms) / 1000
        if after is not None:
            least = after * (1 - self._definition.steps[self._index(step)].retry.jitter)
            if not least - 0.0011 <= seconds <= after + 0.0011:
                span = f"{after:g} s" if least == after else f"between {least:g} and {after:g} s"
                self._fail(f"{step} waits {seconds:g} s for its next attempt, not {span}")
        operation = self._asked(step).operation
        attempt = self._progress(step).attempt + 1
        self._move_to(waits)
        self._expect(step, operation, _ANY, attempt)

    # Answers of services

    def reply(self, step: str, result: Any = None) -> None:
        """The service has done it. ``result``: any JSON."""
        self._answer(step, Operation.ACTION, Outcome.DONE, result, None)

    def refuse(self, step: str, reason: str) -> None:
        """The business says no; nothing was done."""
        self._answer(step, Operation.ACTION, Outcome.REFUSED, None, reason)

    def fail(self, step: str, error: str) -> None:
        """The attempt failed; nothing was done. Another one follows if the retry policy has one left."""
        self._answer(step, Operation.ACTION, Outcome.FAILED, None, error)

    def lose(self, step: str, error: str = "the answer was lost") -> None:
        """Of an HTTP service: nobody knows whether it ran."""
        self._answer(step, Operation.ACTION, Outcome.UNKNOWN, None, error)

    def reply_compensation(self, step: str) -> None:
        """The step is undone."""
        self._answer(step, Operation.COMPENSATION, Outcome.DONE, None, None)

    def fail_compensation(self, step: str, error: str) -> None:
        """It could not be undone this time; it is tried again, for ever."""
        self._answer(step, Operation.COMPENSATION, Outcome.FAILED, None, error)

    # Time

    def advance_time(self, seconds: float) -> None:
        """Let time pass; every timer on the way fires in its turn."""
        if seconds < 0:
            self._fail(f"time does not go back: advance_time({seconds:g})")
        self._move_to(self._now_ms + round(seconds * 1000))

    def no_answer(self, step: str) -> None:
        """The attempt under way goes unanswered: move the clock to its timeout."""
        until = self._progress(step).timeout_at
        if until is None:
            self._fail(f"no attempt of {step} is under way; it is {self.step_state(step)}")
        self._asked(step).answered = True
        self._move_to(until)

    # Operators

    def cancel(self, who: str = "operator", why: str = "") -> None:
        """Turn the saga round."""
        self._request(Request.CANCEL, None, who, why)

    def retry(self, step: str | None = None, who: str = "operator", why: str = "") -> None:
        """Make the attempts that wait for their time now: of one step, or of all."""
        self._request(Request.RETRY, step, who, why)

    def skip(self, step: str, who: str = "operator", why: str = "") -> None:
        """Take the step's action, or its compensation, for done."""
        self._request(Request.SKIP, step, who, why)

    # Ends

    def expect_completed(self) -> None:
        """Every step was executed."""
        self._expect_state(SagaState.COMPLETED)

    def expect_failed(self, reason: str | None = None) -> None:
        """Everything that ran is undone. ``reason``: part of why the saga was given up."""
        self._expect_state(SagaState.FAILED)
        if reason is not None and reason not in (self._machine.reason or ""):
            self._fail(f"it failed because of {self._machine.reason!r}, which has no {reason!r} in it")

    # Within

    @property
    def _machine(self) -> Saga:
        assert self._saga is not None
        return self._saga

    def _expect_state(self, state: SagaState) -> None:
        if self._machine.state is not state:
            steps = ", ".join(f"{name} {self.step_state(name)}" for name in self._names)
            self._fail(f"the saga is {self.state}, not {state} ({steps})")

    def _expect(self, step: str, operation: Operation, payload: Any, attempt: int | None) -> None:
        self._index(step)
        sent = self._sent.get(step)
        what = f"the {_words(operation)} of {step}"
        if sent is None or sent.operation is not operation or sent.expected:
            waiting = [f"the {_words(s.operation)} of {name}" for name, s in self._sent.items() if not s.expected]
            instead = f"what was sent: {', '.join(waiting)}" if waiting else "nothing else was sent either"
            again = " again" if sent is not None and sent.operation is operation else ""
            self._fail(f"{what} was not asked for{again}; {instead}")
        if attempt is not None and sent.attempt != attempt:
            self._fail(f"{what} was asked for as attempt {sent.attempt}, not {attempt}")
        if payload is not _ANY and sent.payload != payload:
            self._fail(f"{what} was asked for with {json.dumps(sent.payload)}, not with {json.dumps(payload)}")
        sent.expected = True

    def _answer(self, step: str, operation: Operation, outcome: Outcome, result: Any, reason: str | None) -> None:
        sent = self._asked(step)
        if sent.operation is not operation:
            self._fail(f"the {_words(operation)} of {step} is not under way: the {_words(sent.operation)} is")
        if sent.answered and self._progress(step).retry_at is not None:
            self._fail(f"{step} waits for its next attempt: expect_retry({step!r}) moves the clock there")
        sent.answered = True
        text = None if result is None else json.dumps(result)
        told = f"{step}: {_words(operation)} answers {outcome}" + (f" {text or reason}" if text or reason else "")
        self._put(StepReplied(step, operation, sent.attempt, outcome, text, reason), told)

    def _asked(self, step: str) -> _Sent:
        self._index(step)
        if step not in self._sent:
            self._fail(f"{step} was not asked for anything yet")
        return self._sent[step]

    def _request(self, request: Request, step: str | None, who: str, why: str) -> None:
        if step is not None:
            self._index(step)
        self._requests += 1
        told = f"{who} asks for {request}" + (f" of {step}" if step else "") + (f": {why}" if why else "")
        self._put(OperatorRequest(str(self._requests), request, step, who, why), told)

    def _move_to(self, at_ms: int) -> None:
        while (due := self._machine.next_deadline) is not None and due <= at_ms:
            self._now_ms = max(self._now_ms, due)
            self._put(DeadlinePassed(due), "a timer fires")
        self._now_ms = max(self._now_ms, at_ms)

    def _put(self, event: Input, told: str) -> None:
        decision = advance(self._saga, event, self._now_ms)
        self._note(told)
        if decision.verdict is Verdict.REJECTED:
            self._fail(f"that is refused: {decision.reason}")
        before = None if self._saga is None else self._saga.state
        self._saga = decision.machine
        for effect in decision.effects:
            match effect:
                case SendCommand():
                    self._send(effect)
                case PublishEvent() if effect.reason is not None:
                    self._note(f"  {effect.type}: {effect.reason}")
                case _:
                    pass
        if self._saga is not None and self._saga.state is not before:
            self._note(f"  the saga is {self._saga.state}")

    def _send(self, command: SendCommand) -> None:
        name = self._names[command.step]
        unexpected = self._sent.get(name)
        if unexpected is not None and not unexpected.expected and unexpected.operation is command.operation:
            # Another attempt of what nobody expected yet: the latest one stands for both.
            self._note(f"  {name}: nobody expected attempt {unexpected.attempt}")
        payload = json.loads(payload_of(self._definition, self._machine.steps, command.step))
        self._sent[name] = _Sent(command.operation, command.attempt, payload)
        told = f" {json.dumps(payload)}" if command.operation is Operation.ACTION else ""
        self._note(f"  → {name}: {_words(command.operation)}, attempt {command.attempt}{told}")

    def _progress(self, step: str) -> StepProgress:
        return self._machine.steps[self._index(step)]

    def _index(self, step: str) -> int:
        if step not in self._names:
            self._fail(f"there is no step {step!r}; there are: {', '.join(self._names)}")
        return self._definition.index[step]

    def _note(self, told: str) -> None:
        self._told.append(f"{self.now:8.3f} s  {told}")

    def _fail(self, what: str) -> NoReturn:
        __tracebackhide__ = True
        raise AssertionError(f"{what}\n\nSo far:\n{self.transcript}")


def _words(operation: Operation) -> str:
    return operation.value.lower()
