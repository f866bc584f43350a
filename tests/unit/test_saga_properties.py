"""What holds for every saga, whatever answers come, in whatever order, how often, and how late."""

import random
from dataclasses import replace

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from saga_processors import saga_codec
from saga_processors.definition import RetryPolicy, SagaDefinition, StepDefinition, StepKind
from saga_processors.machine import DeadlinePassed, Request, Verdict
from saga_processors.saga import (
    SAGA_MOVES,
    STEP_MOVES,
    TERMINAL,
    Input,
    Operation,
    OperatorRequest,
    Outcome,
    PublishEvent,
    Saga,
    SagaStarted,
    SagaState,
    SendCommand,
    StepReplied,
    StepState,
)
from saga_processors.saga_machine import advance
from tests.unit.saga_samples import check_state, definition_to_json

MAX_STEPS = 5


@st.composite
def definitions(draw: st.DrawFn) -> SagaDefinition:
    """Any valid saga of up to five steps: a graph, retries, perhaps a pivot with retriable steps after it."""
    count = draw(st.integers(1, MAX_STEPS))
    pivot = draw(st.one_of(st.none(), st.integers(0, count - 1)))
    steps = []
    for i in range(count):
        if pivot is None or i < pivot:
            kind = StepKind.COMPENSATABLE
            needed = draw(st.sets(st.integers(0, i - 1))) if i else set()
        else:
            kind = StepKind.PIVOT if i == pivot else StepKind.RETRIABLE
            needed = set(range(i)) if i == pivot else {pivot, *draw(st.sets(st.integers(pivot, i - 1)))}
        retry = RetryPolicy(draw(st.integers(1, 3)), 50, 400, 2.0, draw(st.sampled_from([0.0, 0.5])), 4)
        http = draw(st.booleans())
        payload = draw(st.sampled_from(["{}", '{"$from": "input.x"}']))
        if needed and draw(st.booleans()):
            default = ', "default": 1' if kind is StepKind.RETRIABLE or draw(st.booleans()) else ""
            payload = f'[{{"$from": "steps.s{min(needed)}.result.r"{default}}}]'
        steps.append(
            StepDefinition(
                f"s{i}",
                "svc",
                f"s{i}",
                payload,
                tuple(f"s{j}" for j in sorted(needed)),
                kind,
                retry,
                1_000,
                "/act" if http else None,
                "/undo" if http else None,
            )
        )
    definition = SagaDefinition("any", tuple(steps), draw(st.sampled_from([None, 700, 5_000])), input='{"x": 1}')
    definition.check(MAX_STEPS)
    return definition


def inputs(definition: SagaDefinition) -> st.SearchStrategy[Input]:
    """Any input, sensible or not."""
    names = st.sampled_from([step.name for step in definition.steps] + ["nobody"])
    return st.one_of(
        st.builds(
            StepReplied,
            names,
            st.sampled_from(Operation),
            st.integers(1, 4),
            st.sampled_from(Outcome),
            st.sampled_from(['{"r": 1}', "2", None]),
            st.just("why"),
        ),
        st.builds(DeadlinePassed, st.integers(0, 20_000)),
        st.just(SagaStarted(definition)),
        st.builds(
            OperatorRequest,
            st.sampled_from(["1", "2", "3", "4"]),
            st.sampled_from(Request),
            st.one_of(st.none(), names),
            st.just("ann"),
        ),
    )


class Service:
    """A participant with inbox and barrier: what it did for each step, and the answers it gives."""

    def __init__(self) -> None:
        self.inbox: set[SendCommand] = set()
        self.ran: set[int] = set()
        self.undone: set[int] = set()
        #: Actions refused, or compensated before they came: they never run any more.
        self.closed: set[int] = set()

    def handle(self, saga: Saga, command: SendCommand, outcome: Outcome) -> StepReplied | None:
        if command in self.inbox:
            return None
        self.inbox.add(command)
        i = command.step
        name, kind = saga.definition.steps[i].name, saga.definition.steps[i].kind
        if command.operation is Operation.COMPENSATION:
            if outcome is Outcome.FAILED:
                return StepReplied(name, command.operation, command.attempt, Outcome.FAILED, None, "error")
            if i in self.ran:
                self.undone.add(i)
            self.closed.add(i)
            outcome = Outcome.DONE
        elif i in self.ran and i not in self.undone:
            outcome = Outcome.DONE
        elif i in self.closed:
            outcome = Outcome.REFUSED
        elif outcome is Outcome.DONE:
            self.ran.add(i)
        elif outcome is Outcome.REFUSED and kind is not StepKind.RETRIABLE:
            self.closed.add(i)
        return StepReplied(name, command.operation, command.attempt, outcome, '{"r": 1}', None)


@given(st.data())
@settings(max_examples=250)
def test_any_inputs_in_any_order_keep_the_invariants(data: st.DataObject) -> None:
    definition = data.draw(definitions())
    saga = advance(None, SagaStarted(definition), 0).machine
    assert saga is not None
    at = 0
    for event in data.draw(st.lists(inputs(definition), max_size=25)):
        at += data.draw(st.integers(0, 500))
        before = saga
        decision = advance(saga, event, at)
        assert decision == advance(saga, event, at), "the same input gives the same decision"
        saga = decision.machine
        assert saga is not None
        check_state(saga)
        if decision.verdict is not Verdict.APPLIED:
            if isinstance(event, OperatorRequest):
                assert replace(saga, requests=before.requests) == before
                assert before.ended or event.request_id in saga.requests, "a refused one is remembered too"
            else:
                assert saga is before
            assert decision.effects == ()
            assert decision.reason
        else:
            assert not isinstance(event, OperatorRequest) or event.request_id not in before.requests
            sequence = [e.sequence for e in decision.effects if isinstance(e, PublishEvent)]
            assert sequence == list(range(before.events + 1, saga.events + 1))
        if before.state is not saga.state:
            assert saga.state in reachable(before.state)
        # What is stored is what was decided.
        stored = orjson.loads(orjson.dumps(saga_codec.progress_to_json(saga)))
        record = definition_to_json(definition)
        assert saga_codec.saga_from_json(record, saga.state, stored) == saga
        for effect in decision.effects:
            assert saga_codec.effect_from_json(orjson.loads(orjson.dumps(saga_codec.effect_to_json(effect)))) == effect


def reachable(state: SagaState) -> set[SagaState]:
    """States that one input may lead to: several moves of the table at once."""
    found = set(SAGA_MOVES[state].values())
    for following in list(found):
        found |= reachable(following)
    return found


@given(definitions(), st.integers(0, 2**32))
@settings(max_examples=500)
def test_with_lost_doubled_and_reordered_messages_every_saga_ends_whole_or_undone(
    definition: SagaDefinition, seed: int
) -> None:
    """Chaos for a while, then a network that delivers: it ends, and what ran is what the end says."""
    chance = random.Random(seed)
    service = Service()
    decision = advance(None, SagaStarted(definition), 0)
    saga = decision.machine
    in_flight: list[SendCommand | StepReplied] = [e for e in decision.effects if isinstance(e, SendCommand)]
    at = 0
    for round in range(2_000):
        assert saga is not None
        if saga.state in TERMINAL and not in_flight:
            break
        chaotic = round < 60
        fate = chance.choice(["deliver", "deliver", "drop", "double", "wait"]) if chaotic else "deliver"
        if in_flight and fate != "wait":
            place = chance.randrange(len(in_flight)) if chaotic else 0
            message = in_flight[place] if fate == "double" else in_flight.pop(place)
            if fate == "drop":
                continue
            if isinstance(message, SendCommand):
                outcome = chance.choice(list(Outcome)) if chaotic else Outcome.DONE
                if (answer := service.handle(saga, message, outcome)) is not None:
                    in_flight.append(answer)
                continue
            event: Input = message
        elif saga.next_deadline is not None:
            at = max(at, saga.next_deadline)
            event = DeadlinePassed(saga.next_deadline)
        else:
            continue
        decision = advance(saga, event, at)
        saga = decision.machine
        assert saga is not None
        check_state(saga)
        in_flight += [e for e in decision.effects if isinstance(e, SendCommand)]
    assert saga is not None
    assert saga.state in TERMINAL, f"stuck in {saga}"
    if saga.state is SagaState.COMPLETED:
        assert service.ran == set(range(len(definition.steps)))
        assert not service.undone
    else:
        assert service.ran == service.undone, "what ran is undone, and nothing else"


def test_every_state_of_the_tables_can_be_left_or_is_an_end() -> None:
    assert {SagaState.COMPLETED, SagaState.FAILED} == TERMINAL
    for moves in SAGA_MOVES.values():
        assert all(target in SAGA_MOVES for target in moves.values())
    ends = {state for state, moves in STEP_MOVES.items() if not moves}
    assert ends == {StepState.COMPENSATED}
    assert set(STEP_MOVES[StepState.FAILED].values()) == {StepState.COMPENSATING}, "only what ran after all"
    for state in SAGA_MOVES:
        assert state in TERMINAL or reachable(state) & TERMINAL
