"""The two-phase commit machine, told as given / when / then. Names: what happens, then what follows."""

import json

import pytest

from saga_processors.definition import InvalidDefinition
from saga_processors.machine import DeadlinePassed, Request, Verdict
from saga_processors.machines import advance as advance_any
from saga_processors.saga import Operation as StepOperation
from saga_processors.saga import Outcome as StepOutcome
from saga_processors.saga import SagaStarted, StepReplied
from saga_processors.transaction import (
    Input,
    Operation,
    Outcome,
    TransactionStarted,
    TransactionState,
    VerbRequested,
    advance,
)
from saga_processors.transaction_definition import (
    ParticipantDefinition,
    Policy,
    TransactionDefinition,
    Transport,
)
from tests.unit.saga_samples import sequence
from tests.unit.transaction_samples import POLICY, Play, add, answer, participant, transaction_of

PREPARE, COMMIT, ABORT = Operation.PREPARE, Operation.COMMIT, Operation.ABORT


def prepared(*names: str) -> Play:
    play = Play(transaction_of(*names))
    play.prepare()
    for name in names:
        play.vote(name)
    assert play.now.state is TransactionState.PREPARED
    return play


def committing(*names: str) -> Play:
    play = prepared(*names)
    play.commit()
    return play


def test_everybody_votes_yes_and_everybody_commits() -> None:
    play = Play(transaction_of("a"))
    assert (play.sent, play.events, play.states) == ([], ["Started"], "STARTED: a=PREPARING")
    play.put(add("b"))
    play.prepare()
    assert (play.sent, play.events) == (["prepare a", "prepare b"], ["Preparing"])
    play.vote("b")
    assert (play.sent, play.events, play.states) == ([], ["ParticipantPrepared"], "PREPARING: a=PREPARING b=PREPARED")
    play.vote("a")
    assert (play.sent, play.events) == ([], ["ParticipantPrepared", "Prepared"])
    play.commit()
    assert (play.sent, play.events) == (["commit a", "commit b"], ["Committing"])
    assert play.states == "COMMITTING: a=PREPARED b=PREPARED"
    play.put(answer("a", COMMIT))
    assert play.states == "COMMITTING: a=COMMITTED b=PREPARED"
    play.put(answer("b", COMMIT))
    assert (play.events, play.states) == (["ParticipantCommitted", "Committed"], "COMMITTED: a=COMMITTED b=COMMITTED")
    assert play.now.next_deadline is None


def test_auto_commit_decides_with_the_last_vote() -> None:
    play = Play(transaction_of("a", auto_commit=True))
    play.prepare()
    play.vote("a")
    assert play.sent == ["commit a"]
    assert play.events == ["ParticipantPrepared", "Prepared", "Committing"]


def test_without_participants_it_is_prepared_at_once_and_commits_at_once() -> None:
    play = Play(transaction_of())
    play.prepare()
    assert play.now.state is TransactionState.PREPARED
    play.commit()
    assert (play.now.state, play.sent) == (TransactionState.COMMITTED, [])
    automatic = Play(transaction_of(auto_commit=True))
    automatic.prepare()
    assert automatic.now.state is TransactionState.COMMITTED
    assert automatic.events == ["Preparing", "Prepared", "Committing", "Committed"]


def test_the_first_no_aborts_without_waiting_and_the_one_that_refused_is_left_alone() -> None:
    play = Play(transaction_of("a", "b", "c"))
    play.prepare()
    play.vote("a")
    play.vote("b", Outcome.REFUSED)
    assert play.sent == ["abort a", "abort c"]
    assert play.states == "ABORTING: a=PREPARED b=FAILED c=PREPARING"
    assert play.now.reason == "b: refused"
    play.put(answer("a", ABORT))
    play.put(answer("c", ABORT))
    assert play.states == "ABORTED: a=ABORTED b=FAILED c=ABORTED"
    assert play.events == ["ParticipantAborted", "Aborted"]


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.UNKNOWN, Outcome.NO_SUCH_TRANSACTION])
def test_a_vote_in_doubt_is_a_no_and_is_told_to_abort_until_it_acknowledges(outcome: Outcome) -> None:
    play = Play(transaction_of("a"))
    play.prepare()
    play.vote("a", outcome)
    assert (play.sent, play.states) == (["abort a"], "ABORTING: a=FAILED")
    play.put(answer("a", ABORT, Outcome.UNKNOWN))
    assert play.states == "ABORTING: a=FAILED"
    play.put(DeadlinePassed(100))
    assert play.sent == ["abort a 2"]
    play.put(answer("a", ABORT, attempt=2))
    assert play.states == "ABORTED: a=FAILED"


def test_a_yes_that_comes_after_the_abort_began_changes_nothing() -> None:
    play = Play(transaction_of("a", "b"))
    play.prepare()
    play.vote("a", Outcome.REFUSED)
    play.vote("b")
    assert play.decision.verdict is Verdict.IGNORED
    assert "on its way" in (play.decision.reason or "")
    play.put(answer("b", ABORT))
    assert play.states == "ABORTED: a=FAILED b=ABORTED"


def test_a_refusal_that_comes_after_the_abort_began_settles_that_participant() -> None:
    play = Play(transaction_of("a", "b"))
    play.prepare()
    play.vote("a", Outcome.REFUSED)
    play.vote("b", Outcome.REFUSED)
    assert play.states == "ABORTED: a=FAILED b=FAILED"


def test_a_refusal_after_a_yes_does_not_settle_anything() -> None:
    """A second copy of the prepare met the abort: what the first copy took is let go by the abort alone."""
    play = Play(transaction_of("a", "b"))
    play.prepare()
    play.vote("a")
    play.vote("b", Outcome.REFUSED)
    play.vote("a", Outcome.REFUSED)
    assert play.decision.verdict is Verdict.IGNORED
    assert play.states == "ABORTING: a=PREPARED b=FAILED"


def test_an_abort_before_anybody_was_asked_is_over_at_once() -> None:
    play = Play(transaction_of("a", "b"))
    play.abort()
    assert (play.sent, play.states) == ([], "ABORTED: a=ABORTED b=ABORTED")
    assert play.events == ["Aborting", "Aborted"]


@pytest.mark.parametrize("votes", [0, 1, 2])
def test_an_undecided_transaction_aborts_when_its_time_is_over(votes: int) -> None:
    play = Play(transaction_of("a", "b", timeout_ms=900))
    play.prepare()
    for name in ("a", "b")[:votes]:
        play.vote(name)
    assert play.now.next_deadline == 900
    play.put(DeadlinePassed(900))
    assert play.sent == ["abort a", "abort b"]
    assert "timeout of 900 ms" in (play.now.reason or "")


def test_a_transaction_that_nobody_prepares_aborts_when_its_time_is_over() -> None:
    play = Play(transaction_of("a", timeout_ms=900))
    play.put(DeadlinePassed(900))
    assert play.states == "ABORTED: a=ABORTED"


def test_an_http_participant_that_does_not_vote_in_time_votes_no() -> None:
    play = Play(transaction_of("a", "b"))
    play.prepare()
    play.vote("a")
    assert play.now.next_deadline == 1_000
    play.put(DeadlinePassed(1_000))
    assert (play.sent, play.states) == (["abort a", "abort b"], "ABORTING: a=PREPARED b=FAILED")


def test_a_kafka_participant_has_as_long_to_vote_as_the_transaction() -> None:
    play = Play(transaction_of(participant("a", Transport.KAFKA)))
    play.prepare()
    assert play.now.next_deadline == 30_000


def test_after_the_decision_no_timeout_and_no_abort_turns_it() -> None:
    play = committing("a", "b")
    play.put(answer("a", COMMIT))
    for due_at in (30_000, 60_000, 10**9):
        play.put(DeadlinePassed(due_at))
    play.abort()
    assert play.decision.verdict is Verdict.REJECTED
    assert "COMMITTING" in (play.decision.reason or "")
    assert play.states == "COMMITTING: a=COMMITTED b=PREPARED"


def test_a_commit_is_repeated_with_growing_waits_and_calls_for_attention_until_it_is_acknowledged() -> None:
    play = committing("a", "b")
    play.put(answer("b", COMMIT))
    waits = []
    for attempt in range(1, 6):
        play.put(answer("a", COMMIT, Outcome.FAILED, attempt))
        assert ("NeedsAttention" in play.events) == (attempt == 3)
        assert play.now.needs_attention == (attempt >= 3)
        assert play.now.next_deadline is not None
        waits.append(play.now.next_deadline - play.at)
        play.at = play.now.next_deadline
        play.put(DeadlinePassed(play.at))
        assert play.sent == [f"commit a {attempt + 1}"]
    assert waits == [100, 200, 400, 400, 400]
    play.put(answer("a", COMMIT, attempt=2))
    assert play.states == "COMMITTED: a=COMMITTED b=COMMITTED"
    assert not play.now.needs_attention


def test_an_attempt_without_an_answer_is_repeated() -> None:
    play = committing("a")
    play.put(DeadlinePassed(1_000))
    assert play.now.next_deadline == 1_100
    play.put(DeadlinePassed(1_100))
    assert play.sent == ["commit a 2"]


@pytest.mark.parametrize("outcome", [Outcome.NO_SUCH_TRANSACTION, Outcome.REFUSED])
def test_a_participant_that_forgot_its_promise_is_in_doubt_and_is_asked_on(outcome: Outcome) -> None:
    play = committing("a", "b")
    play.put(answer("b", COMMIT))
    play.put(answer("a", COMMIT, outcome))
    assert play.events == ["NeedsAttention"]
    assert (play.now.needs_attention, play.states) == (True, "COMMITTING: a=PREPARED b=COMMITTED")
    play.put(DeadlinePassed(100))
    assert play.sent == ["commit a 2"]
    play.put(answer("a", COMMIT, attempt=2))
    assert (play.now.needs_attention, play.now.state) == (False, TransactionState.COMMITTED)


def test_attention_ends_only_when_nobody_needs_it() -> None:
    play = committing("a", "b")
    play.put(answer("a", COMMIT, Outcome.NO_SUCH_TRANSACTION))
    play.put(answer("b", COMMIT, Outcome.NO_SUCH_TRANSACTION))
    assert play.events == ["NeedsAttention"]
    play.put(answer("a", COMMIT))
    assert play.now.needs_attention
    play.put(answer("b", COMMIT))
    assert not play.now.needs_attention


def test_a_late_word_of_an_earlier_attempt_that_the_promise_is_forgotten_counts() -> None:
    play = committing("a")
    play.put(DeadlinePassed(1_000))
    play.put(answer("a", COMMIT, Outcome.FAILED))
    assert play.decision.verdict is Verdict.IGNORED
    play.put(answer("a", COMMIT, Outcome.NO_SUCH_TRANSACTION))
    assert play.now.needs_attention
    assert play.now.next_deadline == 1_100, "the next attempt leaves when it would have"


def test_a_participant_that_does_not_know_the_transaction_has_aborted_it() -> None:
    play = prepared("a")
    play.abort()
    assert play.sent == ["abort a"]
    play.put(answer("a", ABORT, Outcome.NO_SUCH_TRANSACTION))
    assert play.states == "ABORTED: a=ABORTED"


def test_participants_are_added_once_and_only_while_started() -> None:
    play = Play(transaction_of("a"))
    play.put(add("a"))
    assert play.decision.verdict is Verdict.IGNORED
    play.put(add(participant("a", payload='{"other": 1}')))
    assert play.decision.verdict is Verdict.REJECTED
    assert "other content" in (play.decision.reason or "")
    play.prepare()
    for _ in range(2):
        play.put(add("b"))
        assert play.decision.verdict is Verdict.REJECTED
        assert play.now.state in (play.decision.reason or "")
        play.vote("a")


def test_a_transaction_has_only_so_many_participants_and_so_much_payload() -> None:
    play = Play(transaction_of("a", policy=Policy(max_participants=2)))
    play.put(add("b"))
    play.put(add("c"))
    assert (play.decision.verdict, "at most 2" in (play.decision.reason or "")) == (Verdict.REJECTED, True)
    play = Play(transaction_of("a", policy=Policy(max_size=100)))
    play.put(add(participant("b", payload=json.dumps({"x": "y" * 60}))))
    assert (play.decision.verdict, "at most 100 char" in (play.decision.reason or "")) == (Verdict.REJECTED, True)
    assert len(play.now.participants) == 1


def test_a_thousand_participants_vote_and_commit() -> None:
    names = [f"p{i}" for i in range(1_000)]
    play = Play(transaction_of(*names, auto_commit=True))
    play.prepare()
    assert len(play.sent) == 1_000
    for name in names:
        play.vote(name)
    assert len(play.sent) == 1_000
    for name in reversed(names):
        play.put(answer(name, COMMIT))
    assert play.now.state is TransactionState.COMMITTED


S = TransactionState
APPLIED, IGNORED, REJECTED = Verdict.APPLIED, Verdict.IGNORED, Verdict.REJECTED


def in_state(state: TransactionState) -> Play:
    """A transaction with participants a and b in ``state``; a is the one that has got further."""
    play = Play(transaction_of("a", "b"))
    if state is S.STARTED:
        return play
    play.prepare()
    if state is S.PREPARING:
        return play
    play.vote("a")
    play.vote("b")
    if state in (S.COMMITTING, S.COMMITTED):
        play.commit()
    if state in (S.ABORTING, S.ABORTED):
        play.abort()
    if state in (S.COMMITTED, S.ABORTED):
        for name in "ab":
            play.put(answer(name, COMMIT if state is S.COMMITTED else ABORT))
    assert play.now.state is state
    return play


#: What each input does in each state: the verdict, and the state after it.
TABLE: list[tuple[str, Input, dict[TransactionState, tuple[Verdict, TransactionState]]]] = [
    ("a second start", TransactionStarted(transaction_of("z")), {s: (IGNORED, s) for s in S}),
    ("add", add("c"), {s: (APPLIED if s is S.STARTED else REJECTED, s) for s in S}),
    (
        "prepare",
        VerbRequested(Request.PREPARE),
        {
            S.STARTED: (APPLIED, S.PREPARING),
            S.PREPARING: (IGNORED, S.PREPARING),
            S.PREPARED: (IGNORED, S.PREPARED),
            **{s: (REJECTED, s) for s in (S.COMMITTING, S.COMMITTED, S.ABORTING, S.ABORTED)},
        },
    ),
    (
        "commit",
        VerbRequested(Request.COMMIT),
        {
            S.PREPARED: (APPLIED, S.COMMITTING),
            S.COMMITTING: (IGNORED, S.COMMITTING),
            S.COMMITTED: (IGNORED, S.COMMITTED),
            **{s: (REJECTED, s) for s in (S.STARTED, S.PREPARING, S.ABORTING, S.ABORTED)},
        },
    ),
    (
        "abort",
        VerbRequested(Request.ABORT),
        {
            S.STARTED: (APPLIED, S.ABORTED),
            S.PREPARING: (APPLIED, S.ABORTING),
            S.PREPARED: (APPLIED, S.ABORTING),
            S.ABORTING: (IGNORED, S.ABORTING),
            S.ABORTED: (IGNORED, S.ABORTED),
            **{s: (REJECTED, s) for s in (S.COMMITTING, S.COMMITTED)},
        },
    ),
    *(
        (f"a saga's request {request}", VerbRequested(request), {s: (REJECTED, s) for s in S})
        for request in (Request.CANCEL, Request.RETRY, Request.SKIP)
    ),
    (
        "a yes",
        answer("a", PREPARE),
        {s: (REJECTED if s is S.STARTED else APPLIED if s is S.PREPARING else IGNORED, s) for s in S},
    ),
    (
        "a no",
        answer("a", PREPARE, Outcome.REFUSED),
        {s: (REJECTED if s is S.STARTED else IGNORED, s) for s in S} | {S.PREPARING: (APPLIED, S.ABORTING)},
    ),
    *(
        (
            f"a vote that is {outcome}",
            answer("a", PREPARE, outcome),
            {s: (REJECTED if s is S.STARTED else IGNORED, s) for s in S} | {S.PREPARING: (APPLIED, S.ABORTING)},
        )
        for outcome in (Outcome.FAILED, Outcome.UNKNOWN, Outcome.NO_SUCH_TRANSACTION)
    ),
    ("a second attempt to prepare", answer("a", PREPARE, attempt=2), {s: (REJECTED, s) for s in S}),
    *(
        (
            f"a commit that is {outcome}",
            answer("a", COMMIT, outcome),
            {s: (REJECTED, s) for s in S}
            | {S.COMMITTING: (APPLIED, S.COMMITTING), S.COMMITTED: (IGNORED, S.COMMITTED)},
        )
        for outcome in Outcome
    ),
    *(
        (
            f"an abort that is {outcome}",
            answer("a", ABORT, outcome),
            {s: (REJECTED, s) for s in S} | {S.ABORTING: (APPLIED, S.ABORTING), S.ABORTED: (IGNORED, S.ABORTED)},
        )
        for outcome in Outcome
    ),
    ("a commit that was never asked for", answer("a", COMMIT, attempt=2), {s: (REJECTED, s) for s in S}),
    ("an attempt 0", answer("a", ABORT, attempt=0), {s: (REJECTED, s) for s in S}),
    ("an answer of a stranger", answer("z", PREPARE), {s: (REJECTED, s) for s in S}),
    ("a clock that is early", DeadlinePassed(1), {s: (IGNORED, s) for s in S}),
    (
        "the end of its time",
        DeadlinePassed(30_000),
        {
            S.STARTED: (APPLIED, S.ABORTED),
            S.PREPARING: (APPLIED, S.ABORTING),
            S.PREPARED: (APPLIED, S.ABORTING),
            S.COMMITTING: (APPLIED, S.COMMITTING),
            S.ABORTING: (APPLIED, S.ABORTING),
            S.COMMITTED: (IGNORED, S.COMMITTED),
            S.ABORTED: (IGNORED, S.ABORTED),
        },
    ),
]


@pytest.mark.parametrize("state", list(S))
@pytest.mark.parametrize(("event", "expected"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_every_input_in_every_state(
    state: TransactionState,
    event: Input,
    expected: dict[TransactionState, tuple[Verdict, TransactionState]],
) -> None:
    play = in_state(state)
    before = play.now
    decision = play.put(event)
    assert (decision.verdict, play.now.state) == expected[state]
    if decision.verdict is not Verdict.APPLIED:
        assert play.now is before
        assert decision.effects == ()
        assert decision.reason
    if decision.verdict is Verdict.REJECTED and isinstance(event, VerbRequested):
        assert state in (decision.reason or ""), "a refusal names the state"


def test_an_input_for_a_transaction_that_never_began_is_rejected() -> None:
    for event in (DeadlinePassed(1), add("a"), VerbRequested(Request.ABORT), answer("a", COMMIT)):
        decision = advance(None, event, 0)
        assert (decision.machine, decision.verdict) == (None, Verdict.REJECTED)
        assert advance_any(None, event, 0) == decision


def test_an_input_of_the_other_kind_is_rejected_and_changes_nothing() -> None:
    saga = advance_any(None, SagaStarted(sequence("a")), 0).machine
    transaction = advance_any(None, TransactionStarted(transaction_of("a")), 0).machine
    step = StepReplied("a", StepOperation.ACTION, 1, StepOutcome.DONE)
    for machine, event in [
        (saga, answer("a", PREPARE)),
        (saga, VerbRequested(Request.COMMIT)),
        (saga, TransactionStarted(transaction_of("a"))),
        (transaction, step),
        (transaction, SagaStarted(sequence("a"))),
    ]:
        decision = advance_any(machine, event, 0)
        assert (decision.verdict, decision.effects) == (Verdict.REJECTED, ())
        assert decision.machine is machine


def definition(**changes: object) -> ParticipantDefinition:
    values: dict[str, object] = {
        "service_name": "a",
        "transport": Transport.HTTP,
        "prepare_endpoint": "/transaction/prepare",
        "commit_endpoint": "/transaction/commit",
        "abort_endpoint": "/transaction/abort",
        "payload": "{}",
    }
    return ParticipantDefinition(**(values | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("service_name", ""),
        ("service_name", "a/b"),
        ("service_name", "a\n"),
        ("prepare_endpoint", ""),
        ("prepare_endpoint", "http://evil.example/"),
        ("commit_endpoint", "//evil.example/"),
        ("commit_endpoint", "evil:80/"),
        ("commit_endpoint", "/with space"),
        ("abort_endpoint", "/a#b"),
        ("abort_endpoint", "/" + "a" * 2_000),
        ("abort_endpoint", "/a\r\nHost: evil"),
        ("service_url", "ftp://host/"),
        ("service_url", "http://"),
        ("service_url", "http://user:secret@host/"),
        ("service_url", "http://host:99999/"),
        ("service_url", "http://host/?q"),
        ("service_url", "http://ho st/"),
        ("service_url", "http://host\\@evil/"),
        ("payload", "[]"),
        ("payload", "nothing"),
        ("payload", '{"a": NaN}'),
        ("payload", '{"a": 1e999}'),
        ("payload", '{"a": ' + "[" * 100_000),
    ],
)
def test_a_participant_that_breaks_a_rule_is_refused_and_the_field_is_named(field: str, value: str) -> None:
    with pytest.raises(InvalidDefinition) as refused:
        definition(**{field: value}).check()
    assert refused.value.field == f"participant.{field}"


@pytest.mark.parametrize("endpoint", ["/", "/prepare", "prepare", "/v1/prepare?dry=1", "/a:b/@c", "/.well-known/x"])
def test_endpoints_are_paths_with_or_without_the_leading_slash(endpoint: str) -> None:
    definition(prepare_endpoint=endpoint, service_url="http://[::1]:8000/base").check()


def test_a_service_url_goes_with_http_only() -> None:
    with pytest.raises(InvalidDefinition, match="HTTP only"):
        definition(transport=Transport.KAFKA, service_url="http://host/").check()


@pytest.mark.parametrize(
    ("broken", "field"),
    [
        (TransactionDefinition(timeout_ms=1), "timeout_seconds"),
        (TransactionDefinition(30_000, metadata="{"), "metadata"),
        (TransactionDefinition(30_000, traceparent="x"), "traceparent"),
        (transaction_of("a", "b", "a"), "participants[2].service_name"),
        (transaction_of("a", "b", policy=Policy(max_participants=1)), "participants"),
        (transaction_of("a", "b", policy=Policy(max_size=20)), "participants"),
        (transaction_of("a", definition(payload="1")), "participants[1].payload"),
    ],
)
def test_a_definition_that_breaks_a_rule_is_refused_and_the_field_is_named(
    broken: TransactionDefinition, field: str
) -> None:
    with pytest.raises(InvalidDefinition) as refused:
        broken.check()
    assert refused.value.field == field


def test_waits_are_jittered_and_follow_from_the_transaction_alone() -> None:
    policy = Policy(initial_delay_ms=1_000, max_delay_ms=8_000, jitter=0.5)
    waits = [policy.delay_ms(attempt, "seed") for attempt in range(1, 100)]
    assert waits == [policy.delay_ms(attempt, "seed") for attempt in range(1, 100)]
    assert all(4_000 <= wait <= 8_000 for wait in waits[3:])
    assert len(set(waits)) > 50
    assert POLICY.jitter == 0.0
