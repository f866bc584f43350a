"""The judge: what clients saw, against what is there. Pure: no I/O, no clock.

It knows nothing of how the platform works inside. Its tables of states are written down here once more, from the
contract, so that a machine that was changed wrongly does not change its judge.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace

from tests.torture import deliveries, effects
from tests.torture.history import Answer, History, MessageIntent, SagaIntent, TransferIntent
from tests.torture.rules import Rule, Violation
from tests.torture.world import Stored, World

#: State -> those that may be seen after it.
SAGA_LATER = {
    "STARTED": {"STARTED", "EXECUTING", "COMPENSATING", "COMPLETED", "FAILED"},
    "EXECUTING": {"EXECUTING", "COMPENSATING", "COMPLETED", "FAILED"},
    "COMPENSATING": {"COMPENSATING", "FAILED"},
    "COMPLETED": {"COMPLETED"},
    "FAILED": {"FAILED"},
}
TRANSFER_LATER = {
    "STARTED": {"STARTED", "PREPARING", "PREPARED", "COMMITTING", "COMMITTED", "ABORTING", "ABORTED"},
    "PREPARING": {"PREPARING", "PREPARED", "COMMITTING", "COMMITTED", "ABORTING", "ABORTED"},
    "PREPARED": {"PREPARED", "COMMITTING", "COMMITTED", "ABORTING", "ABORTED"},
    "COMMITTING": {"COMMITTING", "COMMITTED"},
    "COMMITTED": {"COMMITTED"},
    "ABORTING": {"ABORTING", "ABORTED"},
    "ABORTED": {"ABORTED"},
}
MESSAGE_LATER = {
    "PENDING": {"PENDING", "DELIVERED", "FAILED"},
    "DELIVERED": {"DELIVERED"},
    # Nobody sends again here.
    "FAILED": {"FAILED"},
}
LATER = {"saga": SAGA_LATER, "transfer": TRANSFER_LATER, "message": MESSAGE_LATER}
TERMINAL = {"saga": {"COMPLETED", "FAILED"}, "transaction": {"COMMITTED", "ABORTED"}}
#: No client is ever shown another 5xx than "come back later".
PERMITTED_5XX = {503}


def check(history: History, world: World) -> list[Violation]:
    """Every broken invariant, those of one transaction together, in a stable order."""
    found = [
        *strikes(history),
        *answers(history),
        *identities(history, world),
        *states(history, world),
        *ends(history, world),
        *effects.check(history, world),
        *deliveries.check(history, world),
    ]
    return in_order(found, world)


def in_order(found: Iterable[Violation], world: World) -> list[Violation]:
    """Each once, with the label of its work where that is known; those of one piece of work together."""
    labels = {id: label for label, id in _stored(world)}
    named = {one if one.label or one.about not in labels else replace(one, label=labels[one.about]) for one in found}
    return sorted(named, key=lambda one: (one.label or one.about, one.rule, one.told))


def strikes(history: History) -> list[Violation]:
    return [
        Violation(Rule.FAULT, f"{one.fault} {one.target}".strip(), one.wrong)
        for one in history.strikes
        if one.wrong is not None
    ]


def answers(history: History) -> list[Violation]:
    """What no client may be answered."""
    found = [
        Violation(Rule.SERVER_ERROR, one.label, f"{one.what} was answered {one.status}: {one.error}", one.label)
        for one in history.answers
        if one.status is not None and one.status >= 500 and one.status not in PERMITTED_5XX
    ]
    # A saga that a service starts through its outbox is shown once its first input is folded.
    later = {intent.label for intent in history.sagas if intent.way == "outbox"}
    for one in history.answers:
        if one.status == 404 and one.label not in later:
            found.append(
                Violation(Rule.LOST, one.label, f"{one.what} was answered 404 after it was accepted", one.label)
            )
    return found


def identities(history: History, world: World) -> list[Violation]:
    """One key, one id; one piece of work, one id, whatever was retried."""
    by_key: dict[str, set[str]] = defaultdict(set)
    by_label: dict[str, set[str]] = defaultdict(set)
    for answer in history.answers:
        if answer.what == "create" and answer.granted and answer.id:
            by_label[answer.label].add(answer.id)
            if answer.key:
                by_key[answer.key].add(answer.id)
    for label, id in _stored(world):
        if label:
            by_label[label].add(id)
    found = [
        Violation(Rule.TWO_IDS, key, f"one Idempotency-Key gave {len(ids)} ids: {', '.join(sorted(ids))}")
        for key, ids in by_key.items()
        if len(ids) > 1
    ]
    found += [
        Violation(Rule.TWO_IDS, label, f"asked for once, it is there {len(ids)} times: {', '.join(sorted(ids))}", label)
        for label, ids in by_label.items()
        if len(ids) > 1
    ]
    return found


def states(history: History, world: World) -> list[Violation]:
    """What was shown stays true: of two answers, one after the other, the later state can follow the earlier one."""
    later: dict[str, dict[str, set[str]]] = {}
    for intent in history.intents():
        if intent.line in LATER:
            later[intent.label] = LATER[intent.line]
    shown: dict[str, list[Answer]] = defaultdict(list)
    for answer in history.answers:
        if answer.state is not None and answer.label in later:
            shown[answer.label].append(answer)
    last = {one.label: one.shown or one.state for one in world.stored} | {
        one.label: one.status for one in world.messages
    }
    found = []
    for label, seen in shown.items():
        table = later[label]
        end = last.get(label)
        for answer in seen:
            state = answer.state or ""
            if state not in table:
                found.append(Violation(Rule.WENT_BACK, answer.id or label, f"{state} is no state", label))
                continue
            # Answers that overlap in time have no order.
            after = [one for one in seen if one.asked > answer.answered]
            for other in after:
                if other.state not in table[state]:
                    told = f"{other.what} was answered {other.state} after {answer.what} had been answered {state}"
                    found.append(Violation(Rule.WENT_BACK, answer.id or label, told, label))
            if end is not None and end not in table[state]:
                told = f"it is {end}, and {answer.what} had been answered {state}"
                found.append(Violation(Rule.WENT_BACK, answer.id or label, told, label))
    return found


def ends(history: History, world: World) -> list[Violation]:
    """Everything accepted is there and has ended; what a client was granted is what came of it."""
    found = []
    stored = {one.label: one for one in world.stored}
    accepted = {one.label: one for one in history.answers if one.what == "create" and one.granted}
    decided: list[SagaIntent | TransferIntent] = [*history.sagas, *history.transfers]
    for intent in decided:
        if intent.label in accepted and intent.label not in stored:
            answer = accepted[intent.label]
            found.append(Violation(Rule.LOST, answer.id or intent.label, "accepted, and not there", intent.label))
    for one in world.stored:
        found += _end(one)
    by_label: dict[str, list[Answer]] = defaultdict(list)
    for answer in history.answers:
        by_label[answer.label].append(answer)
    for intent in decided:
        if intent.label in stored:
            found += _word(intent, stored[intent.label], by_label[intent.label])
    kept = {one.label for one in world.messages}
    for message in history.messages:
        if message.label in accepted and message.label not in kept:
            found.append(_lost_message(message, accepted[message.label]))
    return found


def _stored(world: World) -> list[tuple[str, str]]:
    """Label and id of every row that a client asked for."""
    return [(one.label, one.id) for one in world.stored] + [(one.label, one.id) for one in world.messages]


def _end(one: Stored) -> list[Violation]:
    found = []
    if one.parked:
        found.append(Violation(Rule.PARKED, one.id, f"parked: {one.reason}"))
    if one.state not in TERMINAL[one.kind]:
        attention = ", needs attention" if one.needs_attention else ""
        found.append(Violation(Rule.STUCK, one.id, f"it is {one.state}{attention}: {one.reason or 'no reason told'}"))
    if one.shown is None:
        found.append(Violation(Rule.LOST, one.id, f"GET does not find it; its row says {one.state}"))
    elif one.shown != one.state:
        found.append(Violation(Rule.BROKEN_WORD, one.id, f"GET shows {one.shown}, its row says {one.state}"))
    return found


def _word(intent: SagaIntent | TransferIntent, one: Stored, answers: list[Answer]) -> list[Violation]:
    """What was planned, asked and granted."""
    told = []
    granted = {answer.what for answer in answers if answer.status == 200}
    if isinstance(intent, SagaIntent):
        refused = any(step.refuses for step in intent.steps)
        if one.state == "COMPLETED" and refused:
            told.append("a step refuses, and it is COMPLETED")
        if one.state == "COMPLETED" and "cancel" in granted:
            told.append("its cancellation was granted, and it is COMPLETED")
        wanted = "FAILED" if refused or "cancel" in granted else "COMPLETED"
    else:
        if one.state == "COMMITTED" and intent.withdrawn:
            told.append("its client withdrew it, and it is COMMITTED")
        if one.state == "COMMITTED" and "abort" in granted:
            told.append("its abort was granted, and it is COMMITTED")
        if one.state == "ABORTED" and "commit" in granted:
            told.append("its commit was granted, and it is ABORTED")
        wanted = "ABORTED" if intent.withdrawn else "COMMITTED"
    found = [Violation(Rule.BROKEN_WORD, one.id, text) for text in told]
    if intent.calm and one.state != wanted:
        found.append(
            Violation(
                Rule.NOT_RECOVERED, one.id, f"no fault was near, and it is {one.state}, not {wanted}: {one.reason}"
            )
        )
    return found


def _lost_message(message: MessageIntent, answer: Answer) -> Violation:
    return Violation(Rule.LOST, answer.id or message.label, "accepted, and not there", message.label)
