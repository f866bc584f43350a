"""The world around a saga, as the explorer sees it: services that may answer anything they may answer. Pure.

A Kafka service is its barrier: ``participant.barrier.decide`` itself, so what is explored is what runs. An HTTP
service has none. What is taken for granted of it is said in ``HTTP_ASSUMPTIONS``, and shown with every report that
rests on it.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from participant import barrier, command
from saga_processors.definition import SagaDefinition, StepDefinition, StepKind
from saga_processors.saga import Operation, Outcome

Decide = Callable[[barrier.Step, command.Operation], barrier.Decision]

HTTP_ASSUMPTIONS = (
    "an HTTP call is over, or never begins, once its step is being compensated",
    "an HTTP service answers every call with one Idempotency-Key as it answered the first",
)


class Held(NamedTuple):
    """What a service holds of one step, and what has become of the world because of it."""

    #: The barrier's row of the action, or what an HTTP service remembers under the Idempotency-Key.
    action: command.Outcome | None = None
    #: JSON text of the action's answer.
    result: str | None = None
    compensated: bool = False
    #: The action took effect, now or before it was undone.
    ran: bool = False
    #: That effect is undone.
    undone: bool = False
    #: Of HTTP: an attempt went unanswered, so nobody can know that the action did not run.
    doubt: bool = False

    @property
    def stands(self) -> bool:
        """Whether the action's effect is there."""
        return self.ran and not self.undone


UNTOUCHED = Held()


class Handling(NamedTuple):
    """One way in which a service may take one command."""

    held: Held
    outcome: Outcome
    result: str | None
    #: For people, after the step's name.
    told: str
    #: The rule of the service's side that was broken, if one was.
    broken: str | None = None


class ServiceModel(Protocol):
    #: Whether a late action is stopped by an earlier compensation.
    has_barrier: bool

    def handle(self, held: Held, operation: Operation, *, faults: bool) -> Sequence[Handling]:
        """Every way in which the command may be taken; without ``faults`` only those that settle the operation.

        The first one is what a healthy service does.
        """


class KafkaService:
    """A service with the library's inbox and barrier: a command is handled once, its rows and reply commit together."""

    has_barrier = True

    def __init__(self, step: StepDefinition, results: Sequence[str | None], decide: Decide = barrier.decide) -> None:
        """``results``: what its action may answer."""
        self._must_succeed = step.kind is StepKind.RETRIABLE
        self._results = results
        self._decide = decide
        self._known: dict[tuple[Held, Operation, bool], tuple[Handling, ...]] = {}

    def handle(self, held: Held, operation: Operation, *, faults: bool) -> Sequence[Handling]:
        key = (held, operation, faults)
        if key not in self._known:
            self._known[key] = tuple(self._handle(held, operation, faults))
        return self._known[key]

    def _handle(self, held: Held, operation: Operation, faults: bool) -> list[Handling]:
        row = barrier.Step(held.action, None, None, held.compensated)
        match self._decide(row, command.Operation(operation)):
            case barrier.Decision.RUN:
                return (self._act if operation is Operation.ACTION else self._undo)(held, faults)
            case barrier.Decision.REPLAY:
                assert held.action is not None
                return [Handling(held, Outcome(held.action), held.result, f"answers {held.action} again")]
            case barrier.Decision.TOO_LATE:
                return [Handling(held, Outcome.REFUSED, None, "refuses: its compensation was here first")]
            case barrier.Decision.CANCEL:
                cancelled = held._replace(action=command.Outcome.CANCELLED, compensated=True)
                return [Handling(cancelled, Outcome.DONE, None, "has nothing to undo, and closes the step")]
            case barrier.Decision.NOTHING:
                return [Handling(held._replace(compensated=True), Outcome.DONE, None, "has nothing to undo")]
            case barrier.Decision.UNDONE:
                return [Handling(held, Outcome.DONE, None, "is undone already")]

    def _act(self, held: Held, faults: bool) -> list[Handling]:
        found = [
            Handling(
                held._replace(action=command.Outcome.DONE, result=result, ran=True, undone=False),
                Outcome.DONE,
                result,
                _runs(result, self._results),
            )
            for result in self._results
        ]
        if not self._must_succeed:
            found.append(Handling(held._replace(action=command.Outcome.REFUSED), Outcome.REFUSED, None, "refuses"))
        elif faults:
            found.append(Handling(held, Outcome.REFUSED, None, "refuses"))
        if faults:
            found.append(Handling(held, Outcome.FAILED, None, "fails, nothing is done"))
        return found

    def _undo(self, held: Held, faults: bool) -> list[Handling]:
        broken = None if held.ran else "its action never ran, and its compensation does"
        undone = held._replace(compensated=True, undone=True)
        found = [Handling(undone, Outcome.DONE, None, "is undone", broken)]
        if faults:
            found.append(Handling(held, Outcome.FAILED, None, "fails to undo", broken))
        return found


class HttpService:
    """A service without a barrier: an answer may be lost after the action ran."""

    has_barrier = False

    def __init__(self, step: StepDefinition, results: Sequence[str | None], *, honours_key: bool = True) -> None:
        self._must_succeed = step.kind is StepKind.RETRIABLE
        self._results = results
        self._honours_key = honours_key

    def handle(self, held: Held, operation: Operation, *, faults: bool) -> Sequence[Handling]:
        return self._act(held, faults) if operation is Operation.ACTION else self._undo(held, faults)

    def _act(self, held: Held, faults: bool) -> list[Handling]:
        if held.action is not None and self._honours_key:
            found = [Handling(held, Outcome(held.action), held.result, f"answers {held.action} again")]
            if faults:
                found.append(Handling(in_doubt(held), Outcome.UNKNOWN, None, "answers again, and the answer is lost"))
            return found
        ran = held._replace(action=command.Outcome.DONE, ran=True, undone=False)
        found = [
            Handling(ran._replace(result=result), Outcome.DONE, result, _runs(result, self._results))
            for result in self._results
        ]
        refused = held._replace(action=command.Outcome.REFUSED)
        if not self._must_succeed:
            found.append(Handling(refused, Outcome.REFUSED, None, "refuses"))
        elif faults:
            found.append(Handling(held, Outcome.REFUSED, None, "refuses"))
        if faults:
            lost = ran._replace(result=self._results[0])
            found.append(Handling(held, Outcome.FAILED, None, "is not reached"))
            found.append(Handling(lost, Outcome.UNKNOWN, None, "runs, and the answer is lost"))
            found.append(Handling(in_doubt(held), Outcome.UNKNOWN, None, "does not run, and does not say so"))
        return found

    def _undo(self, held: Held, faults: bool) -> list[Handling]:
        certain = not held.ran and not held.doubt
        broken = "its action is known not to have run, and its compensation is called" if certain else None
        undone = held._replace(compensated=True, undone=held.ran)
        found = [Handling(undone, Outcome.DONE, None, "is undone" if held.ran else "has nothing to undo", broken)]
        if faults:
            found.append(Handling(held, Outcome.FAILED, None, "is not reached to undo", broken))
            found.append(Handling(undone, Outcome.UNKNOWN, None, "is undone, and the answer is lost", broken))
        return found


def in_doubt(held: Held) -> Held:
    """After an attempt that nobody heard of."""
    return held if held.ran else held._replace(doubt=True)


def _runs(result: str | None, results: Sequence[str | None]) -> str:
    return "runs" if len(results) == 1 else f"runs and answers {result}"


def possible_results(definition: SagaDefinition) -> dict[str, Sequence[str | None]]:
    """By step, results that make a difference: one with all that later payloads refer to, and one without.

    The second only where a reference has no default: then its step cannot be executed.
    """
    paths: dict[int, list[tuple[str, ...]]] = {}
    for template in definition.templates:
        for found in template.references if template else ():
            if found.step is not None and found.default is None:
                paths.setdefault(found.step, []).append(found.path)
    return {
        definition.steps[i].name: (json.dumps(_holding(found)), *(("null",) if any(found) else ()))
        for i, found in paths.items()
    }


def _holding(paths: Sequence[tuple[str, ...]]) -> Any:
    """A value that has something at each of ``paths``."""
    deeper = [path for path in paths if path]
    if not deeper:
        return "x"
    heads = list(dict.fromkeys(path[0] for path in deeper))
    inner = {head: _holding([path[1:] for path in deeper if path[0] == head]) for head in heads}
    if all(head.isdecimal() and int(head) < 100 for head in heads):
        return [inner.get(str(i)) for i in range(max(int(head) for head in heads) + 1)]
    return inner
