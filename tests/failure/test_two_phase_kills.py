"""Two-phase commits while processes die: one outcome everywhere, nothing left held, every transaction ends.

``make test`` keeps it short. The long form, with every boundary: FLUXORA_TEST_TRANSACTIONS=200 for each of them,
FLUXORA_TEST_TRANSFERS=400 for the bank, FLUXORA_TEST_SEED for another run of it.
"""

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import cycle

import pytest
from confluent_kafka import Producer

from deploy.stack import StackError
from tests.http_services import Answer, Call, http_service
from tests.platform import Platform
from tests.services.vaults import ACCOUNTS, BALANCE
from tests.transfers import ALL_VAULTS, DATABASES, Transfer, Transfers

#: `record_property`: figures for the report (--junit-xml).
Record = Callable[[str, object], None]

PER_BOUNDARY = int(os.environ.get("FLUXORA_TEST_TRANSACTIONS", "4"))
RACES = int(os.environ.get("FLUXORA_TEST_RACES", "40"))
LONG = "FLUXORA_TEST_TRANSACTIONS" in os.environ
#: Between two kills; no more than there are accounts, so that no transfer is refused because of another one.
WAVE = min(PER_BOUNDARY, len(ACCOUNTS))

HTTP, KAFKA = ("http-rm", "http-xa"), ("kafka-xa", "kafka-rm")
RM, XA = ("http-rm", "kafka-rm"), ("kafka-xa", "http-xa")

#: The line, whether it is met on the way to the votes or after the decision, who takes part.
Line = tuple[str, str, tuple[str, ...]]
EVERY_DAY: list[Line] = [
    ("coordinator.after_request", "end", ALL_VAULTS),
    ("processor.after_publish", "votes", ALL_VAULTS),
    ("processor.before_commit", "end", ALL_VAULTS),
    ("processor.after_commit", "end", ALL_VAULTS),
    ("relay.after_call", "votes", HTTP),
    ("relay.after_reply", "end", HTTP),
    ("participant.prepare.after_commit", "votes", HTTP),
    ("participant.commit.before_commit", "end", HTTP),
    ("participant.before_commit", "votes", RM),
    ("participant.after_commit", "end", RM),
    ("participant.commit.after_commit", "end", XA),
]
#: The others, in the long form.
FURTHER: list[Line] = [
    ("coordinator.before_request", "votes", ALL_VAULTS),
    ("coordinator.after_request", "votes", ALL_VAULTS),
    ("coordinator.before_request", "end", ALL_VAULTS),
    ("processor.before_commit", "votes", ALL_VAULTS),
    ("processor.after_commit", "votes", ALL_VAULTS),
    ("processor.after_publish", "end", ALL_VAULTS),
    ("relay.before_call", "votes", HTTP),
    ("relay.after_reply", "votes", HTTP),
    ("relay.before_call", "end", HTTP),
    ("relay.after_call", "end", HTTP),
    ("participant.prepare.before_commit", "votes", HTTP),
    ("participant.commit.after_commit", "end", HTTP),
    ("participant.abort.before_commit", "end", HTTP),
    ("participant.abort.after_rollback", "end", XA),
    ("participant.abort.after_commit", "end", HTTP),
    ("participant.after_commit", "votes", RM),
    ("participant.before_commit", "end", RM),
    ("participant.prepare.before_commit", "votes", KAFKA),
    ("participant.prepare.after_commit", "votes", KAFKA),
    ("participant.before_commit", "votes", XA),
    ("participant.commit.before_commit", "end", KAFKA),
    ("participant.commit.after_commit", "end", KAFKA),
    ("participant.before_commit", "end", XA),
]
LINES = EVERY_DAY + FURTHER if LONG else EVERY_DAY
#: Of these, no line is asked for: they die at some moment of the phase.
PROCESSES = [("postgres", "end"), ("connect", "votes")]
if LONG:
    names = ("postgres", "connect", "coordinator", "http-relay", "kafka-rm", "kafka-xa", "vaults")
    PROCESSES = [(name, phase) for name in names for phase in ("votes", "end")]


def wave(vaults: tuple[str, ...]) -> list[Transfer]:
    """Transfers that do not meet. One cannot be paid, and one in four is withdrawn when all have voted."""
    transfers = [Transfer(vaults, ACCOUNTS[i], 6, withdrawn=i % 4 == 1, timeout_seconds=240) for i in range(WAVE)]
    transfers[-1].amount = 100 * BALANCE
    return transfers


def run(
    transfers: Transfers, batch: list[Transfer], before_votes: Callable[[], None], before_end: Callable[[], None]
) -> None:
    """All of a wave go through the phases side by side: a fault of a phase meets some before and some after it."""
    transfers.each(transfers.begin, batch)
    before_votes()
    transfers.each(transfers.prepare, batch)
    prepared = [one for one in batch if transfers.voted(one) == "PREPARED"]
    before_end()
    transfers.each(transfers.decide, prepared)


def nothing() -> None:
    pass


@pytest.fixture(scope="module")
def transfers(platform: Platform) -> Iterator[Transfers]:
    made = Transfers(platform)
    yield made
    made.check_total()


@pytest.mark.timeout(120 + 120 * PER_BOUNDARY // WAVE, func_only=True)
@pytest.mark.parametrize(
    ("line", "phase", "vaults"), LINES, ids=lambda value: value if isinstance(value, str) else "+".join(value)
)
def test_a_crash_at_this_line_leaves_one_outcome(
    platform: Platform,
    transfers: Transfers,
    line: str,
    phase: str,
    vaults: tuple[str, ...],
    record_property: Record,
) -> None:
    ends: Counter[str] = Counter()
    for _ in range(0, PER_BOUNDARY, WAVE):
        batch = wave(vaults)
        if phase == "votes":
            run(transfers, batch, lambda: platform.crash_once_at(line), nothing)
        else:
            run(transfers, batch, nothing, lambda: platform.crash_once_at(line))
        platform.crashed(line)
        states = transfers.all_ended(batch)
        transfers.check(batch, states)
        ends += Counter(states.values())
    record_property("ends", dict(ends))
    # A participant that dies while it votes has not voted; everybody else's death costs no transaction its commit.
    if phase == "end" or not line.startswith("participant.prepare"):
        assert ends["COMMITTED"] >= PER_BOUNDARY // WAVE


@pytest.mark.timeout(120 + 120 * PER_BOUNDARY // WAVE, func_only=True)
@pytest.mark.parametrize(("name", "phase"), PROCESSES)
def test_a_process_killed_in_the_middle_of_a_phase_leaves_one_outcome(
    platform: Platform,
    transfers: Transfers,
    name: str,
    phase: str,
    record_property: Record,
) -> None:
    ends: Counter[str] = Counter()
    for number in range(0, PER_BOUNDARY, WAVE):
        batch = wave(ALL_VAULTS)
        # At another moment of the phase in each wave, always at the same ones.
        pause = random.Random(f"{name} {phase} {number}").uniform(0, 0.6)

        def kill(pause: float = pause) -> None:
            threading.Timer(pause, platform.kill, [name]).start()

        pid = platform.stack.pid(name)
        if phase == "votes":
            run(transfers, batch, kill, nothing)
        else:
            run(transfers, batch, nothing, kill)
        platform.restarted(name, pid)
        states = transfers.all_ended(batch)
        transfers.check(batch, states)
        ends += Counter(states.values())
    record_property("ends", dict(ends))
    # All have voted by then: whoever dies costs no transaction its commit.
    if phase == "end":
        assert ends["COMMITTED"] >= PER_BOUNDARY // WAVE


@contextmanager
def repeated(what: Callable[[], None]) -> Iterator[None]:
    """Do it again and again on a thread of its own while the block runs; what it raises fails the test."""
    over, failed = threading.Event(), []

    def loop() -> None:
        while not over.is_set():
            try:
                what()
            except BaseException as error:
                failed.append(error)
                return

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    if failed:
        raise failed[0]


#: Killed at random under the bank.
MORTAL = [
    "coordinator",
    "saga-processor-1",
    "saga-processor-2",
    "deadline-clock",
    "http-relay",
    "vaults",
    "kafka-rm",
    "kafka-xa",
    "connect",
    "postgres",
]


@pytest.mark.timeout(1800, func_only=True)
def test_money_is_neither_made_nor_lost_while_everything_dies(
    platform: Platform, transfers: Transfers, record_property: Record
) -> None:
    """Transfers between two databases while processes are killed at random.

    A transfer changes the total of each database at that database's own commit, so their sum may differ while one is
    under way. What holds at every moment, in one snapshot of one database: the money in its accounts and what is
    set aside for transfers that are not decided is what it began with and what committed transfers have moved. What
    holds when all have ended: the sum over both is what it was.
    """
    count = int(os.environ.get("FLUXORA_TEST_TRANSFERS", "12"))
    seed = os.environ.get("FLUXORA_TEST_SEED", "1")
    chance = random.Random(seed)
    batch = []
    for _ in range(count):
        # From one database to the other, perhaps to a third vault. Accounts meet: who comes second is refused.
        sides = [list(vaults) for vaults in DATABASES.values()]
        chance.shuffle(sides)
        vaults = [chance.choice(sides[0]), chance.choice(sides[1])]
        if chance.random() < 0.3:
            vaults.append(next(vault for vault in sides[1] if vault not in vaults))
        batch.append(
            Transfer(
                vaults,
                chance.choice(ACCOUNTS[:10]),
                # Some have less.
                chance.choice([2, 10, 100, 6 * BALANCE // 10]),
                withdrawn=chance.random() < 0.1,
                auto_commit=chance.random() < 0.5,
            )
        )
    for one in batch:
        one.withdrawn = one.withdrawn and not one.auto_commit
    killed: Counter[str] = Counter()

    def kill() -> None:
        time.sleep(chance_of_kills.uniform(1, 4))
        name = chance_of_kills.choice(MORTAL)
        try:
            pid = platform.kill(name)
        except (StackError, ProcessLookupError):
            return  # it died of another's death, and is being started again
        platform.restarted(name, pid)
        killed[name] += 1

    chance_of_kills = random.Random(f"kills {seed}")
    databases = cycle(DATABASES)
    reads = 0

    def read() -> None:
        nonlocal reads
        transfers.check_constant(next(databases))
        reads += 1
        time.sleep(0.02)

    with repeated(read):
        with repeated(kill):
            transfers.each(transfers.run, batch)
        states = transfers.all_ended(batch, 240)
    platform.all_ready()
    transfers.check(batch, states)
    transfers.check_total()
    record_property("ends", dict(Counter(states.values())))
    record_property("killed", dict(killed))
    record_property("reads", reads)
    assert "COMMITTED" in states.values()


def test_of_commit_and_abort_at_the_same_moment_one_is_true(
    platform: Platform, transfers: Transfers, record_property: Record
) -> None:
    """Two clients, opposite wishes: the log has an order, and the loser is told what the other has won."""
    batch = [Transfer(vaults, ACCOUNTS[i % len(ACCOUNTS)], 6) for i, vaults in zip(range(RACES), cycle(pairs()))]
    won: Counter[str] = Counter()

    def race(transfer: Transfer) -> None:
        transfers.begin(transfer)
        transfers.prepare(transfer)
        assert transfers.voted(transfer) == "PREPARED"
        ready = threading.Barrier(2)

        def ask(verb: str) -> tuple[int, dict[str, str]]:
            ready.wait()
            answer = platform.decided(transfer.id, verb)
            return answer.status_code, answer.json()

        with ThreadPoolExecutor(2) as two:
            commit, abort = two.map(ask, ["commit", "abort"])
        assert sorted([commit[0], abort[0]]) == [200, 409], (commit, abort)
        winner, loser = (commit[1], abort[1]) if commit[0] == 200 else (abort[1], commit[1])
        truth = "COMMIT" if commit[0] == 200 else "ABORT"
        assert winner["state"].startswith(truth) and loser["state"].startswith(truth), (winner, loser)
        assert loser["state"] in loser["detail"], loser
        transfer.answered = winner["state"]
        won[truth] += 1

    # As many at once as there are accounts: none is refused because of another one.
    for i in range(0, len(batch), len(ACCOUNTS)):
        part = batch[i : i + len(ACCOUNTS)]
        transfers.each(race, part)
        transfers.check(part, transfers.all_ended(part))
    record_property("won", dict(won))


def pairs() -> list[tuple[str, ...]]:
    return [("http-rm", "kafka-xa"), ("kafka-rm", "http-xa"), ("kafka-xa", "kafka-rm"), ("http-xa", "http-rm")]


def test_a_participant_that_promised_is_told_to_abort_though_its_answer_and_then_itself_were_lost(
    platform: Platform,
) -> None:
    """The relay dies with the answer in its hand; its successor finds nobody, and cannot say that nobody was asked."""
    called: list[str] = []

    def answer(call: Call) -> Answer:
        called.append(call.path)
        return 200, {}

    with http_service(answer) as there:
        participant = {"service_name": "there", "service_url": there.url}
        id = platform.http.post("/transactions", json={"participants": [participant]}).json()["transaction_id"]
        platform.crash_once_at("relay.after_call")
        asked = platform.http.post(f"/transactions/{id}/prepare", headers={"Prefer": "respond-async"})
        assert asked.status_code == 202
        platform.crashed("relay.after_call")
    platform.until(
        lambda: platform.http.get(f"/transactions/{id}").json()["state"] in ("ABORTING", "ABORTED"), "it did not abort"
    )
    assert called == ["/transaction/prepare"]
    with http_service(answer, int(there.url.rpartition(":")[2])):
        ended = platform.http.get(f"/transactions/{id}", params={"wait": "60s"}).json()
    assert ended["state"] == "ABORTED", ended
    assert called == ["/transaction/prepare", "/transaction/abort"]


def test_a_commit_that_was_refused_does_not_happen_when_its_record_comes_again(
    platform: Platform, transfers: Transfers
) -> None:
    """Debezium delivers at least once, and the client has been told no."""
    transfer = Transfer(("http-rm", "kafka-rm"), ACCOUNTS[0], 6)
    transfers.begin(transfer)
    early = platform.decided(transfer.id, "commit")
    assert (early.status_code, early.json()["state"]) == (409, "STARTED"), early.text
    transfers.prepare(transfer)
    assert transfers.voted(transfer) == "PREPARED"

    [refused] = [
        record
        for record in platform.records_of("fluxora.transactions", transfer.id)
        if platform.codec.decode(record.value() or b"")[1].get("request") == "COMMIT"
    ]
    again = Producer(
        {"bootstrap.servers": platform.endpoints["KAFKA_BOOTSTRAP_SERVERS"], "partitioner": "murmur2_random"}
    )
    again.produce("fluxora.transactions", refused.value(), refused.key())
    assert again.flush(30) == 0

    # In the log behind it: when this one is answered, the copy has been folded.
    late = {"service_name": "kafka-xa", "payload": {}}
    answer = platform.http.post(f"/transactions/{transfer.id}/participants", json=late)
    assert (answer.status_code, answer.json()["state"]) == (409, "PREPARED")
    outcomes = platform.query(
        "fluxora",
        "SELECT outcome FROM journal WHERE transaction_id = %s AND input ->> 'request' = 'COMMIT' ORDER BY \"offset\"",
        transfer.id,
    )
    assert outcomes == [("REJECTED",), ("IGNORED",)]
    transfer.withdrawn = True
    transfers.decide(transfer)
    assert transfer.answered is not None and transfer.answered.startswith("ABORT")
    transfers.check([transfer], transfers.all_ended([transfer]))
