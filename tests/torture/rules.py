"""The invariants, each with what to look at when it is broken. Pure."""

from dataclasses import dataclass
from enum import StrEnum


class Rule(StrEnum):
    #: Accepted, and nobody knows it.
    LOST = "lost"
    #: No terminal state after the faults were over and the time to settle had passed.
    STUCK = "stuck"
    #: The machine failed on an input.
    PARKED = "parked"
    #: One Idempotency-Key, or one piece of work, with several ids.
    TWO_IDS = "two ids"
    #: A state that a client was shown was left for one that it does not lead to.
    WENT_BACK = "went back"
    #: What a client was told, or told us, is not what came of it.
    BROKEN_WORD = "broken word"
    #: Ended with some of its effects standing and some not.
    HALF_DONE = "half done"
    #: An effect took place twice.
    DOUBLED = "doubled"
    #: Something was undone that had not been done.
    UNDONE_UNDONE = "compensation without its action"
    #: A step before one it depends on, or undone before one that depends on it.
    STEP_ORDER = "order of steps"
    #: A two-phase commit was decided both ways.
    TWO_DECISIONS = "two decisions"
    #: A participant holds what nobody will ask it for any more.
    PROMISE_LEFT = "promise left"
    #: Money was made or lost.
    MONEY = "money"
    #: A committed row of an outbox is not in its topic.
    ROW_LOST = "outbox row lost"
    #: A topic holds what no transaction has committed.
    PHANTOM = "phantom"
    #: A message that was accepted has not arrived, or is called DELIVERED and has not.
    UNDELIVERED = "undelivered"
    #: Messages of a lane, or events of a stream, in another order than they were sent in.
    ORDER = "order of messages"
    #: An event that was published had no effect at its consumer.
    EVENT_LOST = "event lost"
    #: What nobody can understand has vanished without a dead letter.
    POISON_LOST = "poison lost"
    #: An error that no client should see.
    SERVER_ERROR = "server error"
    #: Faults are over, and work does not end as it was planned.
    NOT_RECOVERED = "not recovered"
    #: A fault was answered as it must not be, or could not be injected.
    FAULT = "fault went wrong"
    #: Stored states differ from what the log says.
    REBUILD = "rebuild differs"
    #: ``fluxora audit`` has something to say.
    AUDIT = "audit"


#: Where to look first.
NEXT: dict[Rule, str] = {
    Rule.LOST: "Is its first input in an outbox, and in fluxora.transactions? `fluxora audit`, then "
    "coordinator/creation_store.py.",
    Rule.STUCK: "Which input does it wait for? Read its timeline from the end: the last effect, then that service's "
    "inbox and outbox, then `fluxora tx history ID`; next_deadline must not be null.",
    Rule.PARKED: "The reason is in the journal; the input makes `advance` raise. Feed it to a unit test.",
    Rule.TWO_IDS: "The statement that takes the key and the one that writes the row must be one "
    "(coordinator/creation_store.py, outbox_relay/messages/store.py).",
    Rule.WENT_BACK: "Compare the journal's states with what was read: either the machine's table allows it, or a read "
    "came from something that was rolled back.",
    Rule.BROKEN_WORD: "Find in the journal the input that was answered, and the one that turned it.",
    Rule.HALF_DONE: "Compare the journal's effects with the service's barrier rows of this transaction.",
    Rule.DOUBLED: "Look at inbox and barrier of the service: which two command ids led to the two rows?",
    Rule.UNDONE_UNDONE: "Look at the barrier of the service: the compensation must have found a DONE action.",
    Rule.STEP_ORDER: "Compare the journal's order of effects with `depends_on`.",
    Rule.TWO_DECISIONS: "Two rows of the journal decide: which processor folded each, and did the compare-and-set of "
    "`partitions` let both commit?",
    Rule.PROMISE_LEFT: "Was ABORT or COMMIT sent (the timeline's effects)? If so, the participant's answer is wrong; "
    "if not, `may_hold` was cleared too early.",
    Rule.MONEY: "Which faults were near? Compare `moves` with the transfers that are COMMITTED, vault by vault.",
    Rule.ROW_LOST: "Debezium was asked nothing: compare the slot's confirmed_flush_lsn with the row's commit; "
    "`fluxora audit --refill` mends it, the connector's offsets tell why.",
    Rule.PHANTOM: "Somebody produced without an outbox row, or the row was deleted.",
    Rule.UNDELIVERED: "`fluxora message show ID`, then the claim and due columns of its row.",
    Rule.ORDER: "Look at `position`, `due` and `handed_at` of the lane's rows.",
    Rule.EVENT_LOST: "Is it in its topic, in the group's committed offsets, in the consumer's inbox, in its dlq?",
    Rule.POISON_LOST: "Which consumer's offset has passed it?",
    Rule.SERVER_ERROR: "The service's log has the trace.",
    Rule.NOT_RECOVERED: "A process is up and does not work: compare its log with the time of the last fault on it.",
    Rule.FAULT: "See the fault's own words.",
    Rule.REBUILD: "`fluxora rebuild --verify --keep`, then compare schema fluxora_rebuild with public.",
    Rule.AUDIT: "`fluxora audit` names row, slot or connector.",
}


@dataclass(frozen=True, slots=True)
class Violation:
    rule: Rule
    #: What it is about: a transaction's or message's id, else a label or a name.
    about: str
    told: str
    #: Of the work, if it is known.
    label: str | None = None

    @property
    def next(self) -> str:
        return NEXT[self.rule]
