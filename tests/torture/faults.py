"""The table of faults: DESIGN.md section 6, each with how it is injected here, or which test covers it. Pure.

``python -m tests.torture --list`` prints it; a unit test holds that no number of DESIGN is missing and that every
test that is named exists.
"""

from dataclasses import dataclass
from enum import StrEnum


class Way(StrEnum):
    #: kill -9; the supervisor starts it again
    KILL = "kill -9"
    #: SIGSTOP for longer than the session timeout, then SIGCONT
    FREEZE = "freeze"
    #: SIGTERM: it leaves its group in order, and its partitions move twice
    STOP = "stop"
    #: a limit of 0 on the size of files: every write fails as on a full disk, with EFBIG in place of ENOSPC
    FULL = "disk full"
    #: kill -9 of whoever comes to a line of the code first
    CRASH = "crash at"
    #: records that nobody can understand
    POISON = "poison"
    #: raw copies of records, put into their topic again
    COPIES = "copies"
    #: ``fluxora replay --really``, as an operator does it
    REPLAY = "replay"
    #: requests and records over the limits
    OVERSIZE = "oversize"
    #: no fault of its own: it is in the load all the time
    LOAD = "load"
    #: a test of its own
    ELSEWHERE = "elsewhere"


@dataclass(frozen=True, slots=True)
class Fault:
    #: What ``--faults`` takes.
    name: str
    way: Way
    #: The process, line, or topics.
    target: str
    #: Numbers of DESIGN section 6.
    numbers: tuple[int, ...]
    #: How, or where it is covered.
    how: str

    @property
    def injected(self) -> bool:
        return self.way not in (Way.LOAD, Way.ELSEWHERE)


def _kill(process: str, *numbers: int) -> Fault:
    return Fault(f"kill-{process}", Way.KILL, process, numbers, f"kill -9 of {process}")


def _freeze(process: str, *numbers: int) -> Fault:
    how = f"SIGSTOP of {process} past the session timeout, then SIGCONT"
    return Fault(f"freeze-{process}", Way.FREEZE, process, numbers, how)


def _crash(line: str, meaning: str, *numbers: int) -> Fault:
    return Fault(f"crash-{line}", Way.CRASH, line, numbers, f"kill -9 at the line {line}: {meaning}")


def _elsewhere(name: str, number: int, test: str, remark: str = "") -> Fault:
    return Fault(name, Way.ELSEWHERE, test, (number,), remark or "needs an end or a stack of its own")


FAULTS: tuple[Fault, ...] = (
    _kill("coordinator", 7),
    _kill("saga-processor-1", 1, 2),
    _kill("saga-processor-2", 1, 2),
    _kill("http-relay"),
    _kill("outbox-service"),
    _kill("deadline-clock"),
    _kill("connector-watcher"),
    _kill("alpha", 4),
    _kill("beta", 4),
    _kill("gamma", 4),
    _kill("kafka-rm", 4),
    _kill("kafka-xa", 4),
    _kill("vaults", 4),
    _kill("shop", 4),
    _kill("listener"),
    _kill("connect", 3),
    _kill("postgres", 11),
    _kill("kafka", 12),
    _kill("registry", 18),
    _freeze("saga-processor-1", 9),
    _freeze("saga-processor-2", 9),
    _freeze("http-relay", 9),
    _freeze("alpha", 9, 5),
    _freeze("kafka-rm", 9),
    _freeze("listener", 9),
    _freeze("outbox-service", 9),
    _freeze("coordinator", 9),
    _freeze("vaults", 9, 13),
    _freeze("shop", 9, 13),
    _freeze("connect", 13),
    _freeze("kafka", 12, 13),
    Fault(
        "rebalance", Way.STOP, "saga-processor-2", (10,), "SIGTERM of a processor: its partitions move, and come back"
    ),
    Fault("full-postgres", Way.FULL, "postgres", (17,), "no file of PostgreSQL can grow or be written for a while"),
    Fault("full-kafka", Way.FULL, "kafka", (17,), "no file of the broker can grow or be written for a while"),
    _crash("processor.before_commit", "decided, nothing durable", 1),
    _crash("processor.after_commit", "durable, not published", 1),
    _crash("processor.after_publish", "published, not acknowledged", 2),
    _crash("participant.before_commit", "handled, nothing durable", 4),
    _crash("participant.after_commit", "replied, offsets not committed", 4),
    _crash("participant.prepare.before_commit", "a promise that is not durable", 7),
    _crash("participant.prepare.after_commit", "promised, not answered", 7),
    _crash("participant.commit.before_commit", "told to commit, nothing durable", 4),
    _crash("participant.commit.after_commit", "committed, not answered", 4),
    _crash("participant.abort.before_commit", "told to abort, nothing durable", 4),
    _crash("participant.abort.after_commit", "aborted, not answered", 4),
    _crash("participant.events_before_commit", "an event handled, nothing durable"),
    _crash("participant.events_after_commit", "an event handled, its offset not committed"),
    _crash("coordinator.before_request", "a verb asked, nothing written", 7),
    _crash("coordinator.after_request", "a verb written, not answered", 7),
    _crash("relay.before_call", "taken, not called"),
    _crash("relay.after_call", "called, not reported"),
    _crash("relay.after_reply", "reported, offset not committed"),
    _crash("messages.before_attempt", "a message claimed, not sent"),
    _crash("messages.after_attempt", "a message sent, its outcome not written"),
    Fault(
        "poison",
        Way.POISON,
        "fluxora.transactions, alpha.commands, fluxora.http.commands, torture.orders",
        (8,),
        "bytes that are no record, an unknown schema, a key that is no id; each must be a dead letter",
    ),
    Fault(
        "copies",
        Way.COPIES,
        "alpha.commands, kafka-rm.commands, fluxora.http.commands, fluxora.transactions, torture.orders",
        (20, 5),
        "the last records of each topic once more: actions come again after their compensations",
    ),
    Fault(
        "replay",
        Way.REPLAY,
        "fluxora.transactions",
        (20,),
        "`fluxora replay --really` of the last minute, under load",
    ),
    Fault(
        "oversize", Way.OVERSIZE, "REST, fluxora.transactions", (19,), "a saga, a message, an event and a raw record"
    ),
    Fault("twins", Way.LOAD, "POST /sagas, /transactions, /messages", (19,), "the same Idempotency-Key twice at once"),
    Fault("late-replies", Way.LOAD, "alpha, shop", (13,), "steps that take longer than their timeout allows"),
    _elsewhere(
        "compensation-first",
        5,
        "tests/integration/test_participant_batch.py::test_an_action_after_its_compensation_is_refused",
    ),
    _elsewhere(
        "slot-dropped",
        6,
        "tests/integration/test_audit.py::test_a_slot_dropped_during_writes_is_a_gap_that_is_named_and_filled",
    ),
    _elsewhere(
        "wal-cap",
        14,
        "tests/integration/test_connectors_debezium.py::test_a_slot_that_was_made_anew_fails_loudly_instead_of_skipping",
        "what follows from a slot that was invalidated; that PostgreSQL invalidates it is not provoked",
    ),
    _elsewhere("rebuilt", 15, "tests/integration/test_rebuild.py::test_a_lost_database_is_made_again_from_the_log"),
    _elsewhere(
        "wrong-schema",
        18,
        "tests/integration/test_schemas.py::test_registering_again_keeps_the_ids_and_compatibility_is_enforced",
    ),
)

#: Of DESIGN section 6, and not proven by any test: said here, and printed.
UNPROVEN: dict[int, str] = {
    16: "clock +-1 h on the real stack: no process can be given another clock here without a library of its own. In "
    "virtual time, and with a real database and brokers of another time, it is tested: tests/simulation, "
    "tests/integration/test_deadline_clock.py; the relay's estimate in tests/unit/test_relay_clock.py",
}

INJECTED = {fault.name: fault for fault in FAULTS if fault.injected}
