"""The judge of the torture: it passes a history that is right, and names each thing that is planted in it."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace

import pytest

from tests.torture import history as histories
from tests.torture import world as worlds
from tests.torture.checker import check
from tests.torture.history import (
    Answer,
    EventIntent,
    History,
    MessageIntent,
    PlannedStep,
    Purse,
    SagaIntent,
    Struck,
    TransferIntent,
)
from tests.torture.report import explain
from tests.torture.rules import NEXT, Rule
from tests.torture.world import (
    Consumed,
    Entry,
    Fold,
    Kept,
    Move,
    OutboxRow,
    Poison,
    Receipt,
    Stored,
    World,
)

DONE, UNDONE, PAID, DROPPED = "id-done", "id-undone", "id-paid", "id-dropped"
CHAIN = (PlannedStep("a", "alpha"), PlannedStep("b", "beta", depends_on=("a",)))
REFUSED = (*CHAIN, PlannedStep("c", "shop", http=True, depends_on=("b",), refuses=True))
MOVES = (("http-rm", -5), ("kafka-xa", 5))


def answered(label: str, what: str, at: float, **more: object) -> Answer:
    fields: dict[str, object] = {"asked": at, "answered": at + 0.1, "status": 200, **more}
    return Answer(label, what, **fields)  # type: ignore[arg-type]


def good_history() -> History:
    """A saga that completes, one that is undone, a transfer that commits, one that is withdrawn, messages, events."""
    history = History()
    lines: list[histories.Line] = [
        SagaIntent("done", 1, CHAIN, calm=True),
        # No answer the first time, asked again with its key.
        answered("done", "create", 1, status=None, key="done:create", error="ReadTimeout()"),
        answered("done", "create", 2, status=201, id=DONE, key="done:create"),
        answered("done", "read", 3, state="STARTED"),
        answered("done", "read", 4, state="EXECUTING"),
        answered("done", "read", 5, state="COMPLETED"),
        SagaIntent("undone", 1, REFUSED, way="outbox"),
        # It is shown once its first input is folded.
        answered("undone", "create", 1, status=201, id=UNDONE),
        answered("undone", "read", 2, status=404),
        answered("undone", "read", 3, state="COMPENSATING"),
        answered("undone", "cancel", 4, state="COMPENSATING"),
        TransferIntent("paid", 1, MOVES),
        answered("paid", "create", 1, status=201, id=PAID, key="paid:create"),
        answered("paid", "prepare", 2, state="PREPARED"),
        answered("paid", "commit", 3, state="COMMITTING"),
        TransferIntent("dropped", 1, MOVES, withdrawn=True),
        answered("dropped", "create", 1, status=201, id=DROPPED, key="dropped:create"),
        answered("dropped", "prepare", 2, state="PREPARED"),
        answered("dropped", "abort", 3, state="ABORTING"),
        answered("dropped", "commit", 4, status=409, state="ABORTED"),
        *(MessageIntent(f"m{n}", n, "shop", "0", n) for n in (1, 2, 3)),
        *(answered(f"m{n}", "create", n, status=201, id=f"id-m{n}", key=f"m{n}:create") for n in (1, 2, 3)),
        answered("m1", "read", 5, state="PENDING"),
        answered("m1", "read", 6, state="DELIVERED"),
        *(EventIntent(f"e{n}", n, "0", n) for n in (1, 2, 3)),
        *(answered(f"e{n}", "create", n, status=201) for n in (1, 2)),
        # Its client does not know whether it committed; it did not.
        answered("e3", "create", 3, status=None),
        Purse(1, "one", 1000, 1000, 0, 0),
        Purse(2, "two", 1000, 995, 5, 0),
        Purse(9, "one", 1000, 1005, 0, 5),
        Purse(9, "two", 1000, 995, 0, -5),
        Struck("kill-alpha", "alpha", 2, 4, "pid 1, then 2"),
    ]
    for line in lines:
        history.add(line)
    return history


def good_world() -> World:
    world = World()
    world.stored = [
        Stored(DONE, "saga", "done", "COMPLETED", shown="COMPLETED"),
        Stored(UNDONE, "saga", "undone", "FAILED", shown="FAILED", reason="the shop says no"),
        Stored(PAID, "transaction", "paid", "COMMITTED", shown="COMMITTED"),
        Stored(DROPPED, "transaction", "dropped", "ABORTED", shown="ABORTED"),
    ]
    world.folds = [
        Fold(id, offset, "APPLIED", state)
        for id, *states in (
            (DONE, "EXECUTING", "EXECUTING", "COMPLETED", "COMPLETED"),
            (UNDONE, "EXECUTING", "COMPENSATING", "FAILED"),
            (PAID, "STARTED", "PREPARING", "PREPARED", "COMMITTING", "COMMITTED"),
            (DROPPED, "STARTED", "PREPARED", "ABORTING", "ABORTED"),
        )
        for offset, state in enumerate(states)
    ]
    world.entries = [
        Entry(DONE, "a", "ACTION", 1, "alpha"),
        Entry(DONE, "b", "ACTION", 2, "beta"),
        Entry(UNDONE, "a", "ACTION", 1, "alpha"),
        Entry(UNDONE, "b", "ACTION", 2, "beta"),
        Entry(UNDONE, "b", "COMPENSATION", 3, "beta"),
        Entry(UNDONE, "a", "COMPENSATION", 4, "alpha"),
    ]
    world.moves = [Move("paid", vault, amount) for vault, amount in MOVES]
    world.sent = {PAID: {"PREPARE", "COMMIT"}, DROPPED: {"PREPARE", "ABORT"}}
    world.messages = [Kept(f"id-m{n}", f"m{n}", "shop", "DELIVERED") for n in (1, 2, 3)]
    # The second one came twice: its first attempt's answer was lost.
    world.receipts = [Receipt("shop", f"id-m{n}", place) for place, n in enumerate((1, 2, 2, 3))]
    world.published = {"e1", "e2", "undone"}
    world.consumed = [Consumed("e1", "0", 1, 1), Consumed("e2", "0", 2, 2)]
    world.rows = [
        OutboxRow("ledger", "r1", "fluxora.transactions", "fluxora.StepReplied", DONE),
        OutboxRow("ledger", "r2", "orders", "OrderPlaced", "0"),
    ]
    world.topics = {"fluxora.transactions": {"r1", "from-the-relay"}, "orders": {"r2"}}
    world.outbox_only = {"orders"}
    world.poisons = [Poison("poison-1", "orders.dlq")]
    world.dead = {"orders.dlq": {"poison-1"}}
    return world


def test_a_history_that_is_right_has_nothing_to_tell() -> None:
    assert check(good_history(), good_world()) == []


def test_a_history_without_anything_has_nothing_to_tell() -> None:
    assert check(History(), World()) == []


# ── What is planted ───────────────────────────────────────────────────────────────────────────────────────────

Plant = Callable[[History, World], None]


def stored(world: World, id: str, **changes: object) -> None:
    world.stored = [replace(one, **changes) if one.id == id else one for one in world.stored]  # type: ignore[arg-type]


def a_lost_reply(history: History, world: World) -> None:
    """It left the service, Debezium skipped it, and the saga waits for it."""
    world.topics["fluxora.transactions"].discard("r1")


def a_stuck_saga(history: History, world: World) -> None:
    stored(world, DONE, state="EXECUTING", shown="EXECUTING")
    world.entries = [one for one in world.entries if (one.saga, one.step) != (DONE, "b")]
    world.folds = [one for one in world.folds if (one.transaction_id, one.state) != (DONE, "COMPLETED")]
    history.answers = [one for one in history.answers if one.state != "COMPLETED"]
    history.sagas[0] = replace(history.sagas[0], calm=False)


def a_stuck_transfer(history: History, world: World) -> None:
    stored(world, PAID, state="COMMITTING", shown="COMMITTING")


def a_parked_saga(history: History, world: World) -> None:
    stored(world, DONE, parked=True)


def a_doubled_effect(history: History, world: World) -> None:
    world.entries.append(Entry(DONE, "a", "ACTION", 1.5, "alpha"))


def a_doubled_compensation(history: History, world: World) -> None:
    world.entries.append(Entry(UNDONE, "a", "COMPENSATION", 9, "alpha"))


def a_doubled_move(history: History, world: World) -> None:
    world.moves.append(Move("paid", "kafka-xa", 5))


def a_doubled_event(history: History, world: World) -> None:
    world.consumed.append(Consumed("e2", "0", 2, 3))


def a_compensation_without_its_action(history: History, world: World) -> None:
    world.entries.append(Entry(UNDONE, "c", "COMPENSATION", 5, "shop"))


def a_missing_effect(history: History, world: World) -> None:
    world.entries = [one for one in world.entries if (one.saga, one.step) != (DONE, "b")]


def an_effect_that_stands(history: History, world: World) -> None:
    world.entries = [
        one for one in world.entries if (one.saga, one.step, one.operation) != (UNDONE, "a", "COMPENSATION")
    ]


def an_effect_undone_in_a_completed_saga(history: History, world: World) -> None:
    world.entries.append(Entry(DONE, "b", "COMPENSATION", 3, "beta"))


def an_effect_of_a_refusal(history: History, world: World) -> None:
    world.entries.append(Entry(UNDONE, "c", "ACTION", 3, "shop"))
    world.entries.append(Entry(UNDONE, "c", "COMPENSATION", 4, "shop"))


def a_move_of_an_aborted_transfer(history: History, world: World) -> None:
    world.moves += [Move("dropped", vault, amount) for vault, amount in MOVES]


def a_move_that_is_missing(history: History, world: World) -> None:
    world.moves = world.moves[1:]


def another_amount(history: History, world: World) -> None:
    world.moves[1] = Move("paid", "kafka-xa", 4)


def one_committed_another_aborted(history: History, world: World) -> None:
    world.moves.append(Move("dropped", "http-rm", -5))


def two_decisions_in_the_journal(history: History, world: World) -> None:
    world.folds.append(Fold(PAID, 3, "APPLIED", "ABORTING"))


def two_decisions_sent(history: History, world: World) -> None:
    world.sent[DROPPED].add("COMMIT")


def a_saga_that_ended_twice(history: History, world: World) -> None:
    world.folds.append(Fold(DONE, 9, "APPLIED", "FAILED"))


def a_prepared_row_left(history: History, world: World) -> None:
    world.promises.append(f"kafka-xa has {PAID} prepared since noon")


def money_lost(history: History, world: World) -> None:
    history.purses.append(Purse(5, "one", 1000, 990, 5, 0))


def money_lost_between_two_databases(history: History, world: World) -> None:
    history.purses.append(Purse(10, "one", 1000, 1003, 0, 3))


def money_still_set_aside(history: History, world: World) -> None:
    history.purses.append(Purse(10, "one", 1000, 1000, 5, 5))


def a_state_that_went_back(history: History, world: World) -> None:
    history.add(answered("done", "read", 6, state="EXECUTING"))


def an_end_that_was_left(history: History, world: World) -> None:
    history.add(answered("undone", "read", 5, state="COMPLETED"))


def a_message_that_went_back(history: History, world: World) -> None:
    history.add(answered("m1", "read", 9, state="PENDING"))


def a_state_that_is_none(history: History, world: World) -> None:
    history.add(answered("done", "read", 3.5, state="RUNNING"))


def rest_that_shows_something_else(history: History, world: World) -> None:
    stored(world, DONE, shown="EXECUTING")
    history.answers = [one for one in history.answers if one.state != "COMPLETED"]


def rest_that_does_not_find_it(history: History, world: World) -> None:
    stored(world, DONE, shown=None)


def an_accepted_saga_that_was_not_found_once(history: History, world: World) -> None:
    history.add(answered("done", "read", 3.5, status=404))


def a_saga_that_is_gone(history: History, world: World) -> None:
    world.stored = [one for one in world.stored if one.id != DONE]
    world.entries = [one for one in world.entries if one.saga != DONE]


def a_transfer_that_is_gone(history: History, world: World) -> None:
    world.stored = [one for one in world.stored if one.id != DROPPED]


def effects_of_nobody(history: History, world: World) -> None:
    world.entries.append(Entry("id-nobody", "a", "ACTION", 1, "alpha"))


def moves_of_nobody(history: History, world: World) -> None:
    world.moves.append(Move("nobody", "http-rm", -1))


def a_key_with_two_ids(history: History, world: World) -> None:
    history.add(answered("done", "create", 2.5, status=201, id="id-other", key="done:create"))


def a_request_that_is_there_twice(history: History, world: World) -> None:
    """The client saw one id only; its first, unanswered, call made another saga."""
    world.stored.append(Stored("id-other", "saga", "done", "FAILED", shown="FAILED"))


def a_message_that_is_there_twice(history: History, world: World) -> None:
    world.messages.append(Kept("id-other", "m1", "shop", "DELIVERED"))
    world.receipts.append(Receipt("shop", "id-other", 9))


def a_commit_that_was_granted_and_is_not(history: History, world: World) -> None:
    history.add(answered("dropped", "commit", 3, state=None))


def a_withdrawn_transfer_that_committed(history: History, world: World) -> None:
    stored(world, DROPPED, state="COMMITTED", shown="COMMITTED")


def a_refused_saga_that_completed(history: History, world: World) -> None:
    stored(world, UNDONE, state="COMPLETED", shown="COMPLETED")


def a_cancelled_saga_that_completed(history: History, world: World) -> None:
    history.add(answered("done", "cancel", 4, state="COMPLETED"))


def a_calm_saga_that_failed(history: History, world: World) -> None:
    stored(world, DONE, state="FAILED", shown="FAILED")


def a_step_before_the_one_it_depends_on(history: History, world: World) -> None:
    world.entries[0] = replace(world.entries[0], at=5)


def a_compensation_in_the_wrong_order(history: History, world: World) -> None:
    world.entries[4] = replace(world.entries[4], at=9)


def an_outbox_row_that_was_lost(history: History, world: World) -> None:
    world.topics["orders"] = set()


def a_record_that_nobody_committed(history: History, world: World) -> None:
    world.topics["orders"].add("r9")


def a_message_that_is_pending(history: History, world: World) -> None:
    world.messages[2] = replace(world.messages[2], status="PENDING")


def a_message_that_was_given_up(history: History, world: World) -> None:
    world.messages[2] = replace(world.messages[2], status="FAILED", error="no answer")


def a_delivered_message_that_nobody_got(history: History, world: World) -> None:
    world.receipts = [one for one in world.receipts if one.id != "id-m3"]


def an_accepted_message_that_is_gone(history: History, world: World) -> None:
    world.messages = world.messages[:2]


def messages_out_of_order(history: History, world: World) -> None:
    world.receipts = [Receipt("shop", f"id-m{n}", place) for place, n in enumerate((2, 1, 2, 3))]


def an_event_that_had_no_effect(history: History, world: World) -> None:
    world.consumed = world.consumed[:1]


def an_event_that_was_not_committed(history: History, world: World) -> None:
    world.consumed.append(Consumed("e3", "0", 3, 3))


def a_commit_that_was_acknowledged_and_is_gone(history: History, world: World) -> None:
    world.published.discard("e2")
    world.consumed = world.consumed[:1]


def events_out_of_order(history: History, world: World) -> None:
    world.consumed = [Consumed("e1", "0", 1, 2), Consumed("e2", "0", 2, 1)]


def poison_that_vanished(history: History, world: World) -> None:
    world.dead = {}


def a_server_error(history: History, world: World) -> None:
    history.add(answered("done", "read", 3.5, status=500, error="Internal Server Error"))


def a_fault_that_went_wrong(history: History, world: World) -> None:
    history.add(Struck("oversize", "REST", 5, 6, wrong="POST /sagas was answered 201, not 413"))


PLANTED: list[tuple[Plant, Rule, str]] = [
    (a_lost_reply, Rule.ROW_LOST, DONE),
    (a_stuck_saga, Rule.STUCK, DONE),
    (a_stuck_transfer, Rule.STUCK, PAID),
    (a_parked_saga, Rule.PARKED, DONE),
    (a_doubled_effect, Rule.DOUBLED, DONE),
    (a_doubled_compensation, Rule.DOUBLED, UNDONE),
    (a_doubled_move, Rule.DOUBLED, PAID),
    (a_doubled_event, Rule.DOUBLED, "e2"),
    (a_compensation_without_its_action, Rule.UNDONE_UNDONE, UNDONE),
    (a_missing_effect, Rule.HALF_DONE, DONE),
    (an_effect_that_stands, Rule.HALF_DONE, UNDONE),
    (an_effect_undone_in_a_completed_saga, Rule.HALF_DONE, DONE),
    (an_effect_of_a_refusal, Rule.HALF_DONE, UNDONE),
    (a_move_of_an_aborted_transfer, Rule.HALF_DONE, DROPPED),
    (a_move_that_is_missing, Rule.HALF_DONE, PAID),
    (another_amount, Rule.MONEY, PAID),
    (one_committed_another_aborted, Rule.TWO_DECISIONS, DROPPED),
    (two_decisions_in_the_journal, Rule.TWO_DECISIONS, PAID),
    (two_decisions_sent, Rule.TWO_DECISIONS, DROPPED),
    (a_saga_that_ended_twice, Rule.TWO_DECISIONS, DONE),
    (a_prepared_row_left, Rule.PROMISE_LEFT, f"kafka-xa has {PAID} prepared since noon"),
    (money_lost, Rule.MONEY, "one"),
    (money_lost_between_two_databases, Rule.MONEY, "all databases"),
    (money_still_set_aside, Rule.MONEY, "all databases"),
    (a_state_that_went_back, Rule.WENT_BACK, "done"),
    (an_end_that_was_left, Rule.WENT_BACK, "undone"),
    (a_message_that_went_back, Rule.WENT_BACK, "m1"),
    (a_state_that_is_none, Rule.WENT_BACK, "done"),
    (rest_that_shows_something_else, Rule.BROKEN_WORD, DONE),
    (rest_that_does_not_find_it, Rule.LOST, DONE),
    (an_accepted_saga_that_was_not_found_once, Rule.LOST, "done"),
    (a_saga_that_is_gone, Rule.LOST, DONE),
    (a_transfer_that_is_gone, Rule.LOST, DROPPED),
    (effects_of_nobody, Rule.PHANTOM, "id-nobody"),
    (moves_of_nobody, Rule.PHANTOM, "nobody"),
    (a_key_with_two_ids, Rule.TWO_IDS, "done:create"),
    (a_request_that_is_there_twice, Rule.TWO_IDS, "done"),
    (a_message_that_is_there_twice, Rule.TWO_IDS, "m1"),
    (a_commit_that_was_granted_and_is_not, Rule.BROKEN_WORD, DROPPED),
    (a_withdrawn_transfer_that_committed, Rule.BROKEN_WORD, DROPPED),
    (a_refused_saga_that_completed, Rule.BROKEN_WORD, UNDONE),
    (a_cancelled_saga_that_completed, Rule.BROKEN_WORD, DONE),
    (a_calm_saga_that_failed, Rule.NOT_RECOVERED, DONE),
    (a_step_before_the_one_it_depends_on, Rule.STEP_ORDER, DONE),
    (a_compensation_in_the_wrong_order, Rule.STEP_ORDER, UNDONE),
    (an_outbox_row_that_was_lost, Rule.ROW_LOST, "0"),
    (a_record_that_nobody_committed, Rule.PHANTOM, "orders"),
    (a_message_that_is_pending, Rule.UNDELIVERED, "id-m3"),
    (a_message_that_was_given_up, Rule.UNDELIVERED, "id-m3"),
    (a_delivered_message_that_nobody_got, Rule.UNDELIVERED, "id-m3"),
    (an_accepted_message_that_is_gone, Rule.LOST, "id-m3"),
    (messages_out_of_order, Rule.ORDER, "id-m2"),
    (an_event_that_had_no_effect, Rule.EVENT_LOST, "e2"),
    (an_event_that_was_not_committed, Rule.PHANTOM, "e3"),
    (a_commit_that_was_acknowledged_and_is_gone, Rule.LOST, "e2"),
    (events_out_of_order, Rule.ORDER, "e2"),
    (poison_that_vanished, Rule.POISON_LOST, "poison-1"),
    (a_server_error, Rule.SERVER_ERROR, "done"),
    (a_fault_that_went_wrong, Rule.FAULT, "oversize REST"),
]


@pytest.mark.parametrize(("plant", "rule", "about"), PLANTED, ids=lambda value: getattr(value, "__name__", None))
def test_what_is_planted_is_found_and_named(plant: Plant, rule: Rule, about: str) -> None:
    history, world = good_history(), good_world()
    plant(history, world)
    found = check(history, world)
    assert (rule, about) in {(one.rule, one.about) for one in found}, found


def test_every_rule_that_the_judge_has_is_broken_by_something_planted() -> None:
    tools = {Rule.REBUILD, Rule.AUDIT}
    assert {rule for _, rule, _ in PLANTED} == set(Rule) - tools
    assert set(NEXT) == set(Rule)


def test_answers_that_overlap_have_no_order() -> None:
    """A slow answer tells what was so when it was made, not when it arrived."""
    history = good_history()
    history.add(answered("done", "read", 4.9, answered=8.0, state="EXECUTING"))
    assert check(history, good_world()) == []


def test_effects_in_two_databases_have_no_order() -> None:
    """Their clocks are not one clock."""
    history, world = good_history(), good_world()
    history.sagas[0] = replace(history.sagas[0], steps=(CHAIN[0], replace(CHAIN[1], http=True)))
    world.entries[0] = replace(world.entries[0], at=5)
    assert check(history, world) == []


def test_what_is_found_is_told_with_the_faults_near_it_and_what_to_do_next() -> None:
    history, world = good_history(), good_world()
    a_doubled_effect(history, world)
    found = check(history, world)
    at = "1970-01-01T00:00:03Z"
    entry = {"at": at, "type": "fluxora.SagaStarted", "verdict": "APPLIED", "reason": None, "state": "EXECUTING"}
    journals = {DONE: [{**entry, "effects": [{"effect": "SendCommand", "step": "a", "attempt": 1}]}]}
    told = "\n".join(explain(found, history, journals, seed=7))
    for words in (
        "[doubled] id-done: ACTION of a took effect 2 times",
        "wanted    a saga by rest: a@alpha b@beta<a",
        "client    create no answer ReadTimeout()",
        "FAULT     kill-alpha (pid 1, then 2), all ready after 2.0 s",
        "journal   fluxora.SagaStarted APPLIED -> EXECUTING; left: SendCommand a 1",
        f"next: {NEXT[Rule.DOUBLED]}",
        "--seed 7",
    ):
        assert words in told, told


def test_what_is_recorded_is_read_again_as_it_was() -> None:
    history, world = good_history(), good_world()
    lines = [
        histories.encode(line) for line in [*history.intents(), *history.answers, *history.purses, *history.strikes]
    ]
    again = histories.decode(lines)
    assert again == deepcopy(history)
    assert worlds.decode(worlds.encode(world)) == world
