"""The rules of the barrier, without a database."""

import itertools
import uuid

from hypothesis import given
from hypothesis import strategies as st

from participant.barrier import Decision, Step, decide
from participant.batch import waves
from participant.command import Command, Operation, Outcome

ACTION, COMPENSATION = Operation.ACTION, Operation.COMPENSATION
STORED = [None, Outcome.DONE, Outcome.REFUSED, Outcome.CANCELLED]


def test_every_case_is_decided_as_the_table_says() -> None:
    expected = {
        (None, False): (Decision.RUN, Decision.CANCEL),
        (Outcome.DONE, False): (Decision.REPLAY, Decision.RUN),
        (Outcome.REFUSED, False): (Decision.REPLAY, Decision.NOTHING),
        (Outcome.CANCELLED, False): (Decision.TOO_LATE, Decision.NOTHING),
        (None, True): (Decision.TOO_LATE, Decision.UNDONE),
        (Outcome.DONE, True): (Decision.TOO_LATE, Decision.UNDONE),
        (Outcome.REFUSED, True): (Decision.TOO_LATE, Decision.UNDONE),
        (Outcome.CANCELLED, True): (Decision.TOO_LATE, Decision.UNDONE),
    }
    for action, compensated in itertools.product(STORED, [False, True]):
        step = Step(action=action, compensated=compensated)
        assert (decide(step, ACTION), decide(step, COMPENSATION)) == expected[action, compensated]


class Effects:
    """A step that obeys the barrier: what its handlers did."""

    def __init__(self) -> None:
        self.step = Step()
        self.done = 0
        self.undone = 0

    def arrive(self, operation: Operation, outcome: Outcome) -> None:
        match decide(self.step, operation):
            case Decision.RUN if operation is ACTION:
                if outcome is Outcome.FAILED:
                    return
                self.done += outcome is Outcome.DONE
                self.step = Step(action=outcome)
            case Decision.RUN:
                if outcome is Outcome.FAILED:
                    return
                self.undone += 1
                self.step = Step(action=self.step.action, compensated=True)
            case Decision.CANCEL:
                self.step = Step(action=Outcome.CANCELLED, compensated=True)
            case Decision.NOTHING:
                self.step = Step(action=self.step.action, compensated=True)
            case Decision.REPLAY | Decision.TOO_LATE | Decision.UNDONE:
                pass


@given(
    st.lists(
        st.tuples(
            st.sampled_from([ACTION, COMPENSATION]),
            st.sampled_from([Outcome.DONE, Outcome.REFUSED, Outcome.FAILED]),
        )
    )
)
def test_no_order_of_arrivals_does_a_thing_twice_or_undoes_what_was_not_done(
    arrivals: list[tuple[Operation, Outcome]],
) -> None:
    effects = Effects()
    compensated = False
    for operation, outcome in arrivals:
        before = effects.done
        effects.arrive(operation, outcome)
        compensated = compensated or effects.step.compensated
        assert effects.done <= 1
        assert effects.undone <= effects.done
        if compensated:
            assert effects.done == before, "an action ran after its compensation"
            assert effects.done == effects.undone


@given(st.lists(st.integers(0, 5), max_size=40))
def test_waves_keep_the_order_within_a_transaction_and_never_hold_one_twice(numbers: list[int]) -> None:
    ids = [uuid.UUID(int=number) for number in range(6)]
    commands = [Command(str(i), ids[number], "saga", f"step-{i}", "name", ACTION) for i, number in enumerate(numbers)]
    rounds = waves(commands)
    flat = [command for wave in rounds for command in wave]
    assert sorted(flat, key=lambda c: int(c.command_id)) == commands
    for wave in rounds:
        assert len({command.transaction_id for command in wave}) == len(wave)
    for transaction in ids:
        assert [c for c in flat if c.transaction_id == transaction] == [
            c for c in commands if c.transaction_id == transaction
        ]
