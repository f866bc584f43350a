"""What holds for every two-phase commit, whatever inputs come, in whatever order, how often, and how late."""

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from saga_processors import transaction_codec
from saga_processors.machine import DeadlinePassed, Request, Verdict
from saga_processors.transaction import (
    TRANSACTION_MOVES,
    UNDECIDED,
    AskParticipant,
    Input,
    Operation,
    Outcome,
    ParticipantAddRequested,
    ParticipantReplied,
    ParticipantState,
    PublishEvent,
    Transaction,
    TransactionStarted,
    TransactionState,
    VerbRequested,
    advance,
)
from saga_processors.transaction_definition import Policy, TransactionDefinition, Transport
from tests.unit.transaction_samples import participant

NAMES = ["a", "b", "c"]
POLICY = Policy(attempt_timeout_ms=700, initial_delay_ms=50, max_delay_ms=400, attention_after=2, max_participants=3)

definitions = st.builds(
    TransactionDefinition,
    timeout_ms=st.sampled_from([500, 5_000]),
    auto_commit=st.booleans(),
    participants=st.lists(st.sampled_from(NAMES), unique=True).map(lambda names: tuple(participant(n) for n in names)),
    policy=st.just(POLICY),
)
inputs: st.SearchStrategy[Input] = st.one_of(
    st.builds(VerbRequested, st.sampled_from([Request.PREPARE, Request.PREPARE, Request.COMMIT, Request.ABORT])),
    st.builds(
        ParticipantReplied,
        st.sampled_from([*NAMES, "nobody"]),
        st.sampled_from(Operation),
        st.integers(1, 3),
        st.sampled_from([Outcome.DONE, Outcome.DONE, *Outcome]),
        st.just("why"),
    ),
    st.builds(
        ParticipantAddRequested, st.builds(participant, st.sampled_from([*NAMES, "d"]), st.sampled_from(Transport))
    ),
    st.builds(DeadlinePassed, st.integers(0, 10_000)),
)


def reachable(state: TransactionState) -> set[TransactionState]:
    found = set(TRANSACTION_MOVES[state].values())
    for following in list(found):
        found |= reachable(following)
    return found


def check_state(transaction: Transaction) -> None:
    """Invariants of a single state."""
    states = {p.state for p in transaction.participants}
    assert (transaction.timeout_at is not None) == (transaction.state in UNDECIDED)
    assert (transaction.next_deadline is None) == transaction.ended, "no state is without an exit"
    for p in transaction.participants:
        waits = (p.timeout_at is not None) + (p.retry_at is not None)
        assert waits <= 1
        if transaction.state in (TransactionState.COMMITTING, TransactionState.ABORTING):
            assert waits == p.may_hold, "whoever may hold something is told again"
        assert p.may_hold or not p.needs_attention
    match transaction.state:
        case TransactionState.STARTED:
            assert states <= {ParticipantState.PREPARING}
        case TransactionState.PREPARING:
            assert states == {ParticipantState.PREPARING} or states == {
                ParticipantState.PREPARING,
                ParticipantState.PREPARED,
            }
        case TransactionState.PREPARED:
            assert states <= {ParticipantState.PREPARED}
        case TransactionState.COMMITTING:
            assert states in (
                {ParticipantState.PREPARED},
                {ParticipantState.PREPARED, ParticipantState.COMMITTED},
            )
        case TransactionState.COMMITTED:
            assert states <= {ParticipantState.COMMITTED}
        case TransactionState.ABORTING:
            assert ParticipantState.COMMITTED not in states
        case TransactionState.ABORTED:
            assert states <= {ParticipantState.ABORTED, ParticipantState.FAILED}
            assert not any(p.may_hold for p in transaction.participants)


@given(st.data())
@settings(max_examples=400)
def test_any_inputs_in_any_order_keep_the_invariants(data: st.DataObject) -> None:
    definition = data.draw(definitions)
    transaction = advance(None, TransactionStarted(definition), 0).machine
    assert transaction is not None
    record = {
        "timeout_ms": definition.timeout_ms,
        "auto_commit": definition.auto_commit,
        "metadata": None,
        "traceparent": None,
        "participants": [{f: getattr(p, f) for f in p.__slots__} for p in definition.participants],
    }
    at = 0
    for event in data.draw(st.lists(inputs, max_size=25)):
        at += data.draw(st.integers(0, 300))
        before = transaction
        decision = advance(transaction, event, at)
        assert decision == advance(transaction, event, at), "the same input gives the same decision"
        transaction = decision.machine
        assert transaction is not None
        check_state(transaction)
        if decision.verdict is not Verdict.APPLIED:
            assert transaction is before
            assert decision.effects == ()
            assert decision.reason
        sequence = [e.sequence for e in decision.effects if isinstance(e, PublishEvent)]
        assert sequence == list(range(before.events + 1, transaction.events + 1))
        if before.state is not transaction.state:
            assert transaction.state in reachable(before.state)
        for effect in decision.effects:
            if isinstance(effect, AskParticipant) and effect.operation is Operation.COMMIT:
                assert transaction.state is TransactionState.COMMITTING, "no commit leaves without the decision"
        # What is stored is what was decided.
        stored = orjson.loads(orjson.dumps(transaction_codec.progress_to_json(transaction)))
        assert transaction_codec.transaction_from_json(record, transaction.state, stored) == transaction
        for effect in decision.effects:
            assert transaction_codec.effect_from_json(transaction_codec.effect_to_json(effect)) == effect


def test_a_decision_is_never_left_for_the_other_one() -> None:
    assert reachable(TransactionState.COMMITTING) == {TransactionState.COMMITTED}
    assert reachable(TransactionState.ABORTING) == {TransactionState.ABORTED}
