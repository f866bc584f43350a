"""Walks everything that can happen to one saga, over the machine that runs it. Pure: no clock, no I/O.

Breadth first over the real ``advance`` and the services of ``saga_processors.environment``, so the trace of what is
found is among the shortest. From every state it takes, one at a time:

- every way in which a service may take each command that was ever sent: done, refused, failed, unanswered;
- every answer ever given, again and in any order: nothing in flight is consumed, so late, doubled and reordered
  messages need no moves of their own;
- each timer that runs, and all of them at once. Messages may take any time, so any timer may be the next;
- a cancellation by an operator, while the saga goes forward;
- the loss of everything in flight, after which healthy services must bring the saga to an end (``DEADLOCK``);
- a crash of the processor: the same input is folded again and must give the same decision, the first input comes
  again and must change nothing. Effects that are published again have ids that services know.

Three things keep the walk finite and short. Times are only "runs" or "does not run" in what tells two states apart,
reasons are left out, and of a settled step also how many attempts it took. Faults end after ``attempts`` attempts of
an operation. And a command whose attempt is under way is handled and answered in one move, because until its timer
fires nobody can tell the difference; messages that can change nothing any more are forgotten, after ``advance`` has
confirmed it. ``reduce=False`` switches the last three off; a test compares the two.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from operator import attrgetter
from typing import Any, NamedTuple

from participant import barrier
from saga_processors import saga_machine
from saga_processors.definition import SagaDefinition, StepKind
from saga_processors.environment import (
    HTTP_ASSUMPTIONS,
    UNTOUCHED,
    Decide,
    Handling,
    Held,
    HttpService,
    KafkaService,
    ServiceModel,
    in_doubt,
    possible_results,
)
from saga_processors.machine import DeadlinePassed, Decision, Request, Verdict
from saga_processors.saga import (
    Effect,
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
    StepState,
)

Advance = Callable[[Saga | None, Input, int], Decision[Saga, Effect]]
#: Told now and then: states found, moves made, depth, states that wait to be looked at.
Progress = Callable[[int, int, int, int], None]

#: Attempts of one operation that may go wrong; what is special about the first and the last one needs two.
ATTEMPTS = 2
MAX_STATES = 200_000
#: Between two calls of ``progress``.
PROGRESS_EVERY = 1_000


class Rule(StrEnum):
    #: A state that does not end although every service answers from now on.
    DEADLOCK = "deadlock"
    #: Something is undone though the pivot has run, or a step that is never undone.
    PAST_PIVOT = "compensation past the pivot"
    #: An end at which some of what ran stands, and some does not.
    HALF_DONE = "neither complete nor undone"
    #: A compensation of an action that never ran, or was never asked for.
    NEVER_RAN = "compensation of an action that never ran"
    #: An end that something turned into another one.
    TWO_OUTCOMES = "two outcomes"
    #: An action before what it depends on, or a compensation before what depends on it.
    ORDER = "order of dependency"
    #: The machine raised, or decided differently the second time.
    MACHINE = "the machine"


@dataclass(frozen=True, slots=True)
class Violation:
    rule: Rule
    #: For people: which step, and what is wrong.
    message: str
    #: What happened, in order, from the start of the saga.
    trace: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """What the walk found. ``ok`` speaks only of what was walked: see ``complete`` and ``bounds``."""

    name: str
    #: Different states.
    states: int
    #: Moves between them that were tried.
    moves: int
    #: Moves of the longest way that was needed to reach a state.
    depth: int
    #: How the saga can end, and in how many states it has: ``FAILED, undone: reserve``.
    ends: dict[str, int]
    #: The first, so the shortest, of each kind and step.
    violations: tuple[Violation, ...]
    #: States that were found and not looked at, because ``max_states`` was reached.
    unexplored: int
    #: Every state with fewer moves than this was looked at.
    complete_to: int
    #: What was left out on purpose.
    bounds: tuple[str, ...]
    #: What the result rests on.
    assumptions: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.violations

    @property
    def complete(self) -> bool:
        return self.unexplored == 0


class _Command(NamedTuple):
    operation: Operation
    attempt: int


class _Answer(NamedTuple):
    operation: Operation
    attempt: int
    outcome: Outcome
    result: str | None


class _Net(NamedTuple):
    """What was sent for one step and can still matter."""

    commands: frozenset[_Command] = frozenset()
    answers: frozenset[_Answer] = frozenset()


class _Node(NamedTuple):
    saga: Saga
    held: tuple[Held, ...]
    net: tuple[_Net, ...]


class _Broken(Exception):
    """A move broke a rule; the state behind it is not looked at."""

    def __init__(self, rule: Rule, message: str) -> None:
        super().__init__(message)
        self.rule = rule
        self.message = message


_Key = tuple[Any, ...]
#: A step's name and what happened, put together only when somebody reads it.
_Told = tuple[str, ...]
_Move = tuple[_Told, Callable[[], "_Node | None"]]

_TIMES = {"timeout_at", "retry_at", "started_at", "ended_at"}
_step_facts = attrgetter(*(name for name in StepProgress._fields if name not in _TIMES | {"reason"}))
_OVER = {"definition", "state", "steps", "created_at", "updated_at", "timeout_at", "reason", "events", "requests"}
_saga_facts = attrgetter("state", *(f.name for f in fields(Saga) if f.name not in _OVER))
_SETTLED = {StepState.PENDING, StepState.EXECUTED, StepState.COMPENSATED, StepState.FAILED}
_UNDER_WAY = {Operation.ACTION: StepState.EXECUTING, Operation.COMPENSATION: StepState.COMPENSATING}
_DONE_WITH = {
    Operation.ACTION: _SETTLED - {StepState.PENDING} | {StepState.COMPENSATING},
    Operation.COMPENSATION: {StepState.COMPENSATED, StepState.FAILED},
}


_CANCEL = OperatorRequest("cancel", Request.CANCEL)


def explore(
    definition: SagaDefinition,
    *,
    attempts: int = ATTEMPTS,
    max_states: int = MAX_STATES,
    progress: Progress | None = None,
    results: dict[str, Sequence[str | None]] | None = None,
    honours_key: bool = True,
    copies: bool = False,
    reduce: bool = True,
    advance: Advance = saga_machine.advance,
    decide: Decide = barrier.decide,
) -> Report:
    """Walk every reachable combination of what can happen to ``definition``, which has been checked.

    Args:
        attempts: of one operation, that may go wrong.
        max_states: then the walk ends, and the report says what was not looked at.
        results: by step, what its action may answer, as JSON text; default: what later payloads ask for, and also
            nothing where one of them cannot do without.
        honours_key: HTTP services answer a repeated call as they answered the first.
        copies: an HTTP action that was not reached may be called once more, by a relay that knows nothing of the first
            call, until the saga has ended; what comes of it is told at once.
        advance, decide: the machine and the barrier; tests put broken ones here.
    """
    if attempts < 1 or max_states < 1:
        raise ValueError("attempts and max_states are at least 1")
    walk = _Walk(
        definition,
        attempts,
        possible_results(definition) | (results or {}),
        honours_key,
        copies,
        reduce,
        advance,
        decide,
    )
    return walk.run(max_states, progress)


class _Walk:
    def __init__(
        self,
        definition: SagaDefinition,
        attempts: int,
        results: dict[str, Sequence[str | None]],
        honours_key: bool,
        copies: bool,
        reduce: bool,
        advance: Advance,
        decide: Decide,
    ) -> None:
        self.attempts = attempts
        self.copies = copies
        self.reduce = reduce
        self.advance = advance
        self.original = definition
        self.definition = _bounded(definition, attempts)
        self.names = [step.name for step in definition.steps]
        self.pivot = next((i for i, step in enumerate(definition.steps) if step.kind is StepKind.PIVOT), None)
        self.services: list[ServiceModel] = [
            KafkaService(step, results.get(step.name, (None,)), decide)
            if step.action_endpoint is None
            else HttpService(step, results.get(step.name, (None,)), honours_key=honours_key)
            for step in self.definition.steps
        ]
        self.honours_key = honours_key
        self.moves = 0
        #: State → the state it was first reached from, and by what.
        self.came: dict[_Key, tuple[_Key | None, _Told]] = {}
        self.violations: dict[tuple[Rule, str], Violation] = {}
        self.ends: dict[str, int] = {}
        #: States, with nothing in flight, from which healthy services bring the saga to an end.
        self.ending: set[_Key] = set()

    # The walk

    def run(self, max_states: int, progress: Progress | None) -> Report:
        start = self._start()
        depth = complete_to = 0
        waiting: deque[tuple[_Key, _Node, int]] = deque()
        if start is not None:
            key = self._key(start)
            self.came[key] = (None, ())
            waiting.append((key, start, 0))
            self._look_at(key, start)
        while waiting and len(self.came) < max_states:
            key, node, at = waiting.popleft()
            complete_to = at
            for told, make in self._moves(node):
                self.moves += 1
                try:
                    found = make()
                except _Broken as broken:
                    self._violated(broken, key, told)
                    continue
                if found is None:
                    continue
                found = self._pruned(found)
                found_key = self._key(found)
                if found_key in self.came:
                    continue
                self.came[found_key] = (key, told)
                depth = at + 1
                if not self._repeatable(make, found, found_key):
                    continue
                if self._look_at(found_key, found):
                    waiting.append((found_key, found, at + 1))
                if progress is not None and len(self.came) % PROGRESS_EVERY == 0:
                    progress(len(self.came), self.moves, depth, len(waiting))
        return Report(
            name=self.original.name,
            states=len(self.came),
            moves=self.moves,
            depth=depth,
            ends=dict(sorted(self.ends.items())),
            violations=tuple(self.violations.values()),
            unexplored=len(waiting),
            complete_to=complete_to if waiting else depth + 1,
            bounds=tuple(self._bounds()),
            assumptions=tuple(self._assumptions()),
        )

    def _repeatable(self, make: Callable[[], "_Node | None"], found: _Node, key: _Key) -> bool:
        """A crash before the decision was stored: the same input again must lead to the same state."""
        again = make()
        if again is not None and self._pruned(again) == found:
            return True
        self._violated(_Broken(Rule.MACHINE, "the same input, folded again, leads to another state"), key, None)
        return False

    def _start(self) -> "_Node | None":
        count = len(self.names)
        try:
            decision = self._fold(None, SagaStarted(self.definition))
            if decision.machine is None:
                raise _Broken(Rule.MACHINE, f"the saga does not begin: {decision.reason}")
            return self._after(SagaState.STARTED, decision, (UNTOUCHED,) * count, (_Net(),) * count)
        except _Broken as broken:
            self._violated(broken, None, ())
            return None

    def _look_at(self, key: _Key, node: _Node) -> bool:
        """Check what must hold in a state; whether to go on from it."""
        try:
            self._check_again(node.saga)
            if node.saga.ended:
                self._check_end(node)
            elif not self._ends(node):
                raise _Broken(
                    Rule.DEADLOCK,
                    f"what is in flight is lost, every service answers from then on, and the saga stays "
                    f"{node.saga.state} with {self._told_steps(node.saga)}",
                )
        except _Broken as broken:
            self._violated(broken, key, None)
            return False
        return True

    # Moves

    def _moves(self, node: _Node) -> Iterator[_Move]:
        saga = node.saga
        for i, (held, net, service) in enumerate(zip(node.held, node.net, self.services, strict=True)):
            for command in net.commands:
                faults = command.attempt <= self.attempts
                under_way = self._under_way(saga.steps[i], command)
                copy = self.copies and not service.has_barrier and not under_way
                if copy and saga.ended:
                    continue
                for handling in service.handle(held, command.operation, faults=faults):
                    told = (self.names[i], command.operation, str(command.attempt), handling.told)
                    if under_way or copy:
                        yield told, _later(self._handle, node, i, command, handling, True)
                        if self.reduce or copy:
                            continue
                    yield told, _later(self._handle, node, i, command, handling, False)
            for answer in net.answers:
                told = (self.names[i], answer.operation, str(answer.attempt), f"its answer {answer.outcome} arrives")
                yield told, _later(self._deliver, node, i, answer)
        if saga.ended:
            return
        due: list[int] = []
        for i, step in enumerate(saga.steps):
            if step.retry_at is not None:
                due.append(i)
                yield ("time", f"the wait of {self.names[i]} is over"), _later(self._time, node, (i,), False)
            elif step.timeout_at is not None and step.attempt <= self.attempts:
                due.append(i)
                yield ("time", f"no answer from {self.names[i]} in time"), _later(self._time, node, (i,), False)
        if saga.state is SagaState.EXECUTING:
            yield ("operator", "cancels"), _later(self._cancel, node)
        if saga.timeout_at is not None:
            yield ("time", "the time of the whole saga is over"), _later(self._time, node, (), True)
        if len(due) + (saga.timeout_at is not None) > 1:
            yield (
                ("time", "every timer fires at once"),
                _later(self._time, node, tuple(due), saga.timeout_at is not None),
            )

    def _under_way(self, step: StepProgress, command: _Command) -> bool:
        return (
            step.state is _UNDER_WAY[command.operation]
            and step.attempt == command.attempt
            and step.timeout_at is not None
        )

    def _handle(self, node: _Node, i: int, command: _Command, handling: Handling, answered: bool) -> "_Node | None":
        if handling.broken is not None:
            raise _Broken(Rule.NEVER_RAN, f"{self.names[i]}: {handling.broken}")
        if command.operation is Operation.COMPENSATION:
            self._check_pivot(i, node.held)
        net = node.net[i]
        reached = not (self.copies and not self.services[i].has_barrier and handling.outcome is Outcome.FAILED)
        commands = net.commands - {command} if reached else net.commands
        if command.operation is Operation.COMPENSATION and not self.services[i].has_barrier:
            commands = frozenset(c for c in commands if c.operation is not Operation.ACTION)
        answer = _Answer(command.operation, command.attempt, handling.outcome, handling.result)
        after = _Node(
            node.saga,
            _put(node.held, i, handling.held),
            _put(node.net, i, _Net(commands, net.answers | {answer})),
        )
        return self._deliver(after, i, answer) or after if answered else after

    def _deliver(self, node: _Node, i: int, answer: _Answer) -> "_Node | None":
        decision = self._fold(node.saga, self._reply(i, answer))
        if decision.verdict is not Verdict.APPLIED:
            return None
        return self._after(node.saga.state, decision, node.held, node.net)

    def _time(self, node: _Node, steps: tuple[int, ...], whole: bool) -> "_Node | None":
        """Let timers fire: of ``steps``, and that of the ``whole`` saga. Now is 0, and all others lie after it."""
        saga = node.saga
        progress = list(saga.steps)
        held = list(node.held)
        for i in steps:
            step = progress[i]
            if step.retry_at is not None:
                progress[i] = step._replace(retry_at=0)
            else:
                progress[i] = step._replace(timeout_at=0)
        for i in range(len(progress)) if whole else steps:
            if saga.steps[i].timeout_at is not None and not self.services[i].has_barrier:
                held[i] = in_doubt(held[i])
        saga = replace(saga, steps=tuple(progress), timeout_at=0 if whole else saga.timeout_at)
        decision = self._fold(saga, DeadlinePassed(0))
        if decision.verdict is not Verdict.APPLIED:
            return None
        return self._after(saga.state, decision, tuple(held), node.net)

    def _cancel(self, node: _Node) -> "_Node | None":
        decision = self._fold(node.saga, _CANCEL)
        if decision.verdict is not Verdict.APPLIED:
            return None
        return self._after(node.saga.state, decision, node.held, node.net)

    def _after(
        self,
        before: SagaState,
        decision: Decision[Saga, Effect],
        held: tuple[Held, ...],
        net: tuple[_Net, ...],
    ) -> _Node:
        """The state after a decision, with its commands on their way; raises what sending them breaks."""
        saga = decision.machine
        assert saga is not None
        for effect in decision.effects:
            if isinstance(effect, SendCommand):
                self._check_command(effect, held, saga, before)
                i = effect.step
                sent = _Command(effect.operation, effect.attempt)
                net = _put(net, i, _Net(net[i].commands | {sent}, net[i].answers))
        return _Node(saga, held, net)

    # Telling states apart

    def _key(self, node: _Node) -> _Key:
        return (self._saga_key(node.saga), node.held, node.net)

    def _saga_key(self, saga: Saga) -> _Key:
        return (
            _saga_facts(saga),
            saga.timeout_at is not None,
            tuple([self._step_key(step) for step in saga.steps]),
        )

    def _step_key(self, step: StepProgress) -> _Key:
        if self.reduce and step.state in _SETTLED and step.timeout_at is None:
            return (step.state, step.result)
        return (_step_facts(step), step.timeout_at is not None, step.retry_at is not None)

    def _pruned(self, node: _Node) -> _Node:
        if not self.reduce:
            return node
        nets = list(node.net)
        for i, net in enumerate(nets):
            if not net.commands and not net.answers:
                continue
            nets[i] = _Net(frozenset(self._live_commands(node, i)), frozenset(self._live_answers(node, i)))
        return node._replace(net=tuple(nets))

    def _live_commands(self, node: _Node, i: int) -> Iterator[_Command]:
        """Commands that can still matter. Of several old attempts one is enough: a service takes each alike."""
        for operation in Operation:
            old: list[_Command] = []
            for command in node.net[i].commands:
                if command.operation is operation:
                    if self._under_way(node.saga.steps[i], command):
                        yield command
                    elif self._matters(node, i, command):
                        old.append(command)
            if old:
                yield _Command(operation, min(command.attempt for command in old))

    def _live_answers(self, node: _Node, i: int) -> Iterator[_Answer]:
        """Answers that can still matter. Which of the old attempts one comes from does not."""
        step = node.saga.steps[i]
        for answer in node.net[i].answers:
            if not self._stale(node.saga, i, answer):
                yield answer._replace(attempt=1) if answer.attempt < step.attempt else answer

    def _matters(self, node: _Node, i: int, command: _Command) -> bool:
        """Whether an old command can still change its service, or the saga."""
        held = node.held[i]
        for handling in self.services[i].handle(held, command.operation, faults=command.attempt <= self.attempts):
            answer = _Answer(command.operation, command.attempt, handling.outcome, handling.result)
            if handling.held != held or handling.broken or not self._stale(node.saga, i, answer):
                return True
        return False

    def _stale(self, saga: Saga, i: int, answer: _Answer) -> bool:
        """Whether an answer can change nothing, now or later."""
        step = saga.steps[i]
        if step.state not in _DONE_WITH[answer.operation]:
            settles = answer.outcome is Outcome.DONE or (
                answer.outcome is Outcome.REFUSED and self.definition.steps[i].kind is not StepKind.RETRIABLE
            )
            over = answer.attempt < step.attempt or step.retry_at is not None
            if settles or not over or step.state is not _UNDER_WAY[answer.operation]:
                return False
        try:
            return self._fold(saga, self._reply(i, answer)).verdict is not Verdict.APPLIED
        except _Broken:
            return False  # its delivery will tell, with the trace

    def _reply(self, i: int, answer: _Answer) -> StepReplied:
        reason = None if answer.outcome is Outcome.DONE else answer.outcome.lower()
        return StepReplied(self.names[i], answer.operation, answer.attempt, answer.outcome, answer.result, reason)

    # Rules

    def _fold(self, saga: Saga | None, event: Input) -> Decision[Saga, Effect]:
        try:
            decision = self.advance(saga, event, 0)
        except Exception as error:
            raise _Broken(Rule.MACHINE, f"it raised {type(error).__name__}: {error}") from error
        if saga is not None and saga.ended and decision.machine is not None:
            self._check_same_end(saga, decision, event)
        return decision

    def _check_again(self, saga: Saga) -> None:
        """The first input comes again; an ended saga is also told everything that may be told."""
        again = self._fold(saga, SagaStarted(self.definition))
        if again.verdict is Verdict.APPLIED:
            raise _Broken(Rule.TWO_OUTCOMES, "the first input came again, and was folded again")
        if not saga.ended:
            return
        for i in range(len(self.names)):
            for operation in Operation:
                for outcome in Outcome:
                    for attempt in (1, self.attempts):
                        self._fold(saga, self._reply(i, _Answer(operation, attempt, outcome, None)))
        self._fold(saga, DeadlinePassed(0))

    def _check_same_end(self, saga: Saga, decision: Decision[Saga, Effect], event: Input) -> None:
        published = [e.type for e in decision.effects if isinstance(e, PublishEvent)]
        if decision.machine is not None and decision.machine.state is not saga.state:
            raise _Broken(
                Rule.TWO_OUTCOMES, f"it had ended as {saga.state}, then {_told(event)} made it {decision.machine.state}"
            )
        if decision.effects:
            what = ", ".join(published) or "commands"
            raise _Broken(Rule.TWO_OUTCOMES, f"it had ended as {saga.state}, then {_told(event)} led to {what}")

    def _check_command(self, effect: SendCommand, held: tuple[Held, ...], saga: Saga, before: SagaState) -> None:
        i, name = effect.step, self.names[effect.step]
        if effect.operation is Operation.ACTION:
            for j in self.definition.depends_on[i]:
                if not held[j].stands:
                    raise _Broken(Rule.ORDER, f"{name} is asked for, and {self.names[j]} that it needs has not run")
            if before not in (SagaState.STARTED, SagaState.EXECUTING):
                raise _Broken(Rule.ORDER, f"the action of {name} is asked for while the saga is {before}")
            return
        self._check_pivot(i, held)
        for j in self.definition.dependents[i]:
            # What ran late, after what it needed was undone, is being undone out of order: nothing else is possible.
            late = self.copies and saga.steps[j].state is StepState.COMPENSATING
            if held[j].stands and not late:
                raise _Broken(Rule.ORDER, f"{name} is being undone, and {self.names[j]} that needed it still stands")
        if saga.steps[i].started_at is None:
            raise _Broken(Rule.NEVER_RAN, f"{name} is being undone, and was never asked for")

    def _check_pivot(self, i: int, held: tuple[Held, ...]) -> None:
        kind = self.definition.steps[i].kind
        if kind is not StepKind.COMPENSATABLE:
            raise _Broken(Rule.PAST_PIVOT, f"{self.names[i]} is {kind.lower()}, and is being undone")
        if self.pivot is not None and held[self.pivot].ran:
            raise _Broken(
                Rule.PAST_PIVOT, f"{self.names[i]} is being undone, and the pivot {self.names[self.pivot]} has run"
            )

    def _check_end(self, node: _Node) -> None:
        stands = [name for name, held in zip(self.names, node.held, strict=True) if held.stands]
        undone = [name for name, held in zip(self.names, node.held, strict=True) if held.ran and held.undone]
        missing = [name for name in self.names if name not in stands]
        if node.saga.state is SagaState.COMPLETED:
            if missing:
                raise _Broken(Rule.HALF_DONE, f"it is COMPLETED, and this does not stand: {', '.join(missing)}")
            end = "COMPLETED"
        else:
            if stands:
                told = f"; undone: {', '.join(undone)}" if undone else ""
                raise _Broken(Rule.HALF_DONE, f"it is {node.saga.state}, and this stands: {', '.join(stands)}{told}")
            end = f"{node.saga.state}, undone: {', '.join(undone)}" if undone else f"{node.saga.state}, nothing had run"
        self.ends[end] = self.ends.get(end, 0) + 1

    def _ends(self, node: _Node) -> bool:
        """Whether the saga ends once everything in flight is lost and all services are healthy."""
        saga, held = node.saga, node.held
        sent: deque[tuple[int, _Command]] = deque()
        seen: list[_Key] = []
        for _ in range(100 + 50 * len(self.names)):
            if saga.ended:
                self.ending.update(seen)
                return True
            if sent:
                i, command = sent.popleft()
                handling = self.services[i].handle(held[i], command.operation, faults=False)[0]
                held = _put(held, i, handling.held)
                answer = _Answer(command.operation, command.attempt, handling.outcome, handling.result)
                decision = self._fold(saga, self._reply(i, answer))
            else:
                key = (self._saga_key(saga), held)
                if key in self.ending:
                    self.ending.update(seen)
                    return True
                seen.append(key)
                due = saga.next_deadline
                if due is None:
                    return False
                decision = self._fold(saga, DeadlinePassed(due))
            if decision.machine is None:
                return False
            saga = decision.machine
            sent.extend(
                (e.step, _Command(e.operation, e.attempt)) for e in decision.effects if isinstance(e, SendCommand)
            )
        return False

    # Telling people

    def _violated(self, broken: _Broken, key: _Key | None, last: _Told | None) -> None:
        found = (broken.rule, broken.message)
        if found in self.violations or sum(rule is broken.rule for rule, _ in self.violations) >= 5:
            return
        trace = [] if not last else [_line(last)]
        while key is not None:
            key, told = self.came[key]
            if told:
                trace.append(_line(told))
        self.violations[found] = Violation(broken.rule, broken.message, ("the saga begins", *reversed(trace)))

    def _told_steps(self, saga: Saga) -> str:
        return ", ".join(f"{name} {step.state}" for name, step in zip(self.names, saga.steps, strict=True))

    def _bounds(self) -> Iterator[str]:
        more = [step.name for step in self.original.steps if step.retry.max_attempts > self.attempts]
        if more:
            yield (
                f"at most {self.attempts} attempts of an action go wrong before it is given up; "
                f"the retry policy allows more for {', '.join(more)}"
            )
        yield f"after {self.attempts} attempts of what is tried for ever, the next one succeeds"

    def _assumptions(self) -> Iterator[str]:
        if any(not service.has_barrier for service in self.services):
            yield HTTP_ASSUMPTIONS[0]
            if self.honours_key:
                yield HTTP_ASSUMPTIONS[1]


def _bounded(definition: SagaDefinition, attempts: int) -> SagaDefinition:
    """The same saga with so many attempts at most, and without ``needs_attention``, which decides nothing."""
    return replace(
        definition,
        steps=tuple(
            replace(
                step,
                retry=replace(
                    step.retry,
                    max_attempts=min(step.retry.max_attempts, attempts),
                    attention_after=2**31 - 1,
                    jitter=0.0,
                ),
            )
            for step in definition.steps
        ),
    )


def _later(call: Callable[..., "_Node | None"], *arguments: object) -> Callable[[], "_Node | None"]:
    return lambda: call(*arguments)


_T = Any


def _put(values: tuple[_T, ...], i: int, value: _T) -> tuple[_T, ...]:
    return (*values[:i], value, *values[i + 1 :])


def _told(event: Input) -> str:
    if isinstance(event, StepReplied):
        return f"{event.outcome} of {event.operation} {event.attempt} of {event.step}"
    return type(event).__name__


def _line(told: _Told) -> str:
    if len(told) == 2:
        return f"{told[0]}: {told[1]}"
    step, operation, attempt, what = told
    return f"{step}: {operation.lower()} {attempt} {what}"
