"""The guard around the fold, on a real database and real topics, with records handed over as Faust might do it."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import orjson
import psycopg
import pytest
from confluent_kafka import Producer

import coordinator.migrations
from participant.sagas import Step, started
from saga_processors import processor as module
from saga_processors.log import InputLog
from saga_processors.machine import Decision
from saga_processors.partition import Halted, Record
from saga_processors.partitioning import partition_of
from saga_processors.processor import Processor
from saga_processors.records import KafkaRecord
from saga_processors.store import Store
from saga_processors.transaction_definition import Policy
from tests.platform import Platform

TOPIC_ID = "the-topic"
PARTITIONS = 12


def new_id(partition: int = 0) -> str:
    """An id whose key belongs to ``partition``."""
    while partition_of((id := str(uuid.uuid4())).encode(), PARTITIONS) != partition:
        pass
    return id


class Sent:
    """Stands where the Kafka producer would be, to see what leaves; ``fails`` as brokers that are gone."""

    def __init__(self) -> None:
        self.records: list[KafkaRecord] = []
        self.fails = False

    async def publish(self, records: Sequence[KafkaRecord]) -> None:
        if self.fails:
            raise ConnectionError("the brokers are gone")
        self.records += records

    @property
    def ids(self) -> list[str]:
        return [dict(record.headers)["ce_id"].decode() for record in self.records]  # type: ignore[union-attr]


@pytest.fixture
def database(platform: Platform) -> Iterator[str]:
    """A coordinator's database of its own: no other processor folds into it."""
    name = f"guard_{uuid.uuid4().hex[:8]}"
    server = platform.endpoints["DATABASE_URL"].removesuffix("fluxora")
    with psycopg.connect(server + "postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        coordinator.migrations.upgrade(server + name)
        yield server + name
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


Scenario = Callable[[Processor, Sent], Awaitable[None]]


def run(platform: Platform, database: str, *scenarios: Scenario, topic_id: str = TOPIC_ID) -> Sent:
    """Run each scenario with a processor of its own, one after the other, as after a restart."""
    sent = Sent()

    async def play(scenario: Scenario) -> None:
        store = await Store.connect(database, "guard", idle_limit=10)
        input_log = InputLog(platform.endpoints["KAFKA_BOOTSTRAP_SERVERS"])
        try:
            await scenario(make(platform, store, input_log, sent, topic_id), sent)
        finally:
            input_log.close()
            await store.close()

    for scenario in scenarios:
        asyncio.run(play(scenario))
    return sent


class Settled(Processor):
    """Waits for a batch's effects before it returns, so that a scenario sees them."""

    async def handle(self, records: Sequence[Record]) -> None:
        await super().handle(records)
        await self.settle()


def make(
    platform: Platform,
    store: Store,
    input_log: InputLog,
    sent: Sent,
    topic_id: str = TOPIC_ID,
    kind: type[Processor] = Settled,
) -> Processor:
    return kind(
        store=store,
        codec=platform.codec,
        input_log=input_log,
        publisher=sent,  # type: ignore[arg-type]
        topic_id=topic_id,
        partitions=PARTITIONS,
        batch_size=100,
        cache_size=100,
        max_steps=10,
        policy=Policy(),
    )


def saga_started(platform: Platform, offset: int, id: str | None = None, partition: int = 0) -> Record:
    id = id or new_id(partition)
    value = platform.codec.encode("fluxora.SagaStarted", started(uuid.UUID(id), "guarded", [Step("alpha", {})]))
    return Record(partition, offset, 1_000 + offset, id.encode(), value)


def replied(platform: Platform, offset: int, id: str, partition: int = 0, **more: Any) -> Record:
    reply = {
        "transaction_id": id,
        "command_id": "c",
        "step": "step-1",
        "operation": "ACTION",
        "attempt": 1,
        "outcome": "DONE",
        **more,
    }
    return Record(partition, offset, 1_000 + offset, id.encode(), platform.codec.encode("fluxora.StepReplied", reply))


def rows(database: str, sql: str) -> list[Any]:
    with psycopg.connect(database) as connection:
        return connection.execute(sql).fetchall()  # type: ignore[arg-type]


JOURNAL = 'SELECT "offset", outcome, state FROM journal ORDER BY 1'


def test_a_redelivered_input_is_skipped(platform: Platform, database: str) -> None:
    first, second = saga_started(platform, 0), saga_started(platform, 1)

    async def deliver(processor: Processor, sent: Sent) -> None:
        await processor.handle([first])
        await processor.handle([first, second])
        await processor.handle([second])

    sent = run(platform, database, deliver, lambda processor, sent: processor.handle([first, second]))
    assert rows(database, JOURNAL) == [(0, "APPLIED", "EXECUTING"), (1, "APPLIED", "EXECUTING")]
    # The second processor cannot know that the last batch has left: it leaves again, with the same ids.
    assert len(set(sent.ids[:4])) == 4
    assert set(sent.ids[4:]) <= set(sent.ids[2:4])


def test_a_second_copy_of_an_input_changes_nothing(platform: Platform, database: str) -> None:
    """Debezium sends it again after a crash of Connect: the same record at a new offset."""
    id = new_id()
    copies = [
        saga_started(platform, 0, id),
        saga_started(platform, 1, id),
        replied(platform, 2, id),
        replied(platform, 3, id),
        saga_started(platform, 4, id),
    ]
    sent = run(platform, database, lambda processor, sent: processor.handle(copies))
    assert [row[1] for row in rows(database, JOURNAL)] == ["APPLIED", "IGNORED", "APPLIED", "IGNORED", "IGNORED"]
    assert rows(database, "SELECT state, version FROM transactions") == [("COMPLETED", 1)]
    assert len(sent.ids) == len(set(sent.ids))


def test_plans_of_small_tables_are_not_kept_for_large_ones(platform: Platform, database: str) -> None:
    """Until they are analyzed, they would be read as a whole for every batch."""
    ids = [new_id() for _ in range(21)]

    def flushed() -> list[Any]:
        return rows(database, "SELECT seq_tup_read FROM pg_stat_user_tables WHERE relname = 'transactions'")

    async def fold(processor: Processor, numbers: Sequence[int]) -> None:
        for n in numbers:
            await processor.handle([saga_started(platform, 2 * n, ids[n])])
            await processor.handle([replied(platform, 2 * n + 1, ids[n])])
        await processor._store._connection.execute("SELECT pg_stat_force_next_flush()")

    async def grow(processor: Processor, sent: Sent) -> None:
        await fold(processor, range(20))
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute(
                "INSERT INTO transactions SELECT gen_random_uuid(), kind, name, state, services, partition, version, "
                "definition, progress, false, false, NULL, NULL, now(), now() FROM transactions, "
                "generate_series(1, 1000)"
            )
        before = flushed()
        await fold(processor, [20])
        assert flushed() == before

    run(platform, database, grow)


def test_inputs_that_were_not_delivered_are_fetched_before_the_next_one(platform: Platform, database: str) -> None:
    producer = Producer(
        {"bootstrap.servers": platform.endpoints["KAFKA_BOOTSTRAP_SERVERS"], "partitioner": "murmur2_random"}
    )
    ids = [new_id(7) for _ in range(4)]
    offsets: list[int] = []
    for id in ids:
        record = saga_started(platform, 0, id, partition=7)
        producer.produce(
            "fluxora.transactions",
            record.value,
            record.key,
            partition=7,
            on_delivery=lambda error, message: offsets.append(message.offset() or 0),
        )
    assert producer.flush(30) == 0
    last = saga_started(platform, offsets[-1], ids[-1], partition=7)

    async def deliver_the_last_one_only(processor: Processor, sent: Sent) -> None:
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute("INSERT INTO partitions VALUES (7, %s, %s, %s)", (TOPIC_ID, offsets[0], offsets[0]))
        await processor.handle([last])

    run(platform, database, deliver_the_last_one_only)
    folded = rows(database, 'SELECT transaction_id::text FROM journal ORDER BY "offset"')
    assert [id for (id,) in folded if id in ids] == ids
    assert rows(database, "SELECT next_offset FROM partitions") == [(offsets[-1] + 1,)]


def test_a_zombie_lets_go_and_writes_nothing(platform: Platform, database: str) -> None:
    first, theirs, mine = (saga_started(platform, offset) for offset in (0, 1, 1))

    async def two_owners(processor: Processor, sent: Sent) -> None:
        await processor.handle([first])
        store = await Store.connect(database, "successor", idle_limit=10)
        await make(platform, store, processor._log, sent).handle([theirs])
        await store.close()
        before = len(sent.records)
        with pytest.raises(Halted, match="another processor"):
            await processor.handle([mine])
        assert len(sent.records) == before

    run(platform, database, two_owners)
    assert [row[0] for row in rows(database, JOURNAL)] == [0, 1]


def test_what_was_decided_and_not_published_leaves_when_the_partition_is_taken_over(
    platform: Platform, database: str
) -> None:
    id = new_id()

    async def decide_and_die(processor: Processor, sent: Sent) -> None:
        await processor.handle([saga_started(platform, 0, id)])
        sent.records.clear()
        sent.fails = True
        with pytest.raises(ConnectionError):
            await processor.handle([replied(platform, 1, id, outcome="REFUSED", reason="no")])
        sent.fails = False

    sent = run(platform, database, decide_and_die, lambda processor, sent: processor.adopt([0]))
    assert f"{id}:4" in sent.ids, "the saga's last event"
    assert rows(database, "SELECT next_offset, published_through FROM partitions") == [(2, 2)]
    again = run(platform, database, lambda processor, sent: processor.adopt([0]))
    assert again.ids == []


class Slow(Sent):
    """Brokers that acknowledge when they are let."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self.acknowledges = asyncio.Event()

    async def publish(self, records: Sequence[KafkaRecord]) -> None:
        self.asked += 1
        await self.acknowledges.wait()
        await super().publish(records)


class Short(InputLog):
    """A log of two inputs, whatever other tests have written into the stack's."""

    def __init__(self) -> None:
        pass

    async def ends(self, partitions: Sequence[int]) -> dict[int, int]:
        return dict.fromkeys(partitions, 2)


def test_effects_leave_while_the_next_batch_is_folded_and_in_the_order_of_the_log(
    platform: Platform, database: str
) -> None:
    first, second = new_id(), new_id()
    published = "SELECT next_offset, published_through FROM partitions"

    async def overlap(processor: Processor, _: Sent) -> None:
        sent = Slow()
        pipelined = make(platform, processor._store, Short(), sent, kind=Processor)
        await pipelined.handle([saga_started(platform, 0, first)])
        following = asyncio.create_task(pipelined.handle([saga_started(platform, 1, second)]))
        async with asyncio.timeout(60):
            while rows(database, published) != [(2, 0)]:  # noqa: ASYNC110  # another process's rows, no event of ours
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert sent.asked == 1 and not following.done(), "the second batch's effects wait for the first one's"
        sent.acknowledges.set()
        await following
        await pipelined.settle()
        assert [id.split(":")[0] for id in sent.ids] == [first] * 2 + [second] * 2
        await pipelined.catch_up([0], stuck_after=60)
        assert rows(database, published) == [(2, 2)]

    run(platform, database, overlap)


def test_two_batches_that_were_decided_and_not_published_leave_when_the_partition_is_taken_over(
    platform: Platform, database: str
) -> None:
    first, second = new_id(), new_id()

    async def decide_two_and_die(processor: Processor, sent: Sent) -> None:
        pipelined = make(platform, processor._store, processor._log, sent, kind=Processor)
        sent.fails = True
        await pipelined.handle([saga_started(platform, 0, first)])
        with pytest.raises(ConnectionError):
            await pipelined.handle([saga_started(platform, 1, second)])
        sent.fails = False

    sent = run(platform, database, decide_two_and_die, lambda processor, sent: processor.adopt([0]))
    assert [id.split(":")[0] for id in sent.ids] == [first] * 2 + [second] * 2
    assert rows(database, "SELECT next_offset, published_through FROM partitions") == [(2, 2)]


def test_a_topic_that_was_made_again_is_refused(platform: Platform, database: str) -> None:
    async def refused(processor: Processor, sent: Sent) -> None:
        with pytest.raises(Halted, match="deleted and made again"):
            await processor.handle([saga_started(platform, 1)])

    run(platform, database, lambda processor, sent: processor.handle([saga_started(platform, 0)]))
    run(platform, database, refused, topic_id="another")


def test_a_transaction_that_breaks_the_machine_is_parked_and_the_others_go_on(
    platform: Platform, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = new_id(), new_id()
    real = module.advance

    def breaks(saga: Any, event: Any, at: int) -> Decision:
        if at == 1_001:
            raise ZeroDivisionError("a bug")
        return real(saga, event, at)

    monkeypatch.setattr(module, "advance", breaks)
    inputs = [
        saga_started(platform, 0, bad),
        replied(platform, 1, bad),
        saga_started(platform, 2, good),
        replied(platform, 3, bad),
        replied(platform, 4, good),
    ]
    run(platform, database, lambda processor, sent: processor.handle(inputs))
    assert [row[1] for row in rows(database, JOURNAL)] == ["APPLIED", "PARKED", "APPLIED", "PARKED", "APPLIED"]
    found = rows(database, "SELECT id::text, state, parked, needs_attention FROM transactions")
    assert sorted(found) == sorted([(bad, "EXECUTING", True, True), (good, "COMPLETED", False, False)])
    # It stays parked after a restart.
    run(platform, database, lambda processor, sent: processor.handle([replied(platform, 5, bad)]))
    assert rows(database, JOURNAL)[-1][1] == "PARKED"


def test_poison_is_dead_lettered_with_connects_headers_and_the_log_goes_on(platform: Platform, database: str) -> None:
    id = new_id()
    good = saga_started(platform, 0, id)
    no_steps = platform.codec.encode("fluxora.SagaStarted", started(uuid.UUID(id), "guarded", []))
    command = platform.codec.encode(
        "fluxora.StepCommand",
        {
            "command_id": "c",
            "transaction_id": id,
            "saga_name": "x",
            "step": "x",
            "command": "x",
            "operation": "ACTION",
            "attempt": 1,
            "payload": "{}",
        },
    )
    in_the_year_9999 = platform.codec.encode(
        "fluxora.DeadlinePassed", {"transaction_id": id, "due_at": 253402300799000}
    )
    no_json = started(uuid.UUID(id), "guarded", [Step("alpha", {})])
    no_json["steps"][0]["payload"] = "{"
    assert good.value is not None
    poison = [
        Record(0, 0, 0, id.encode(), None),
        Record(0, 1, 0, id.encode(), b""),
        Record(0, 2, 0, id.encode(), b"not avro at all"),
        Record(0, 3, 0, id.encode(), b"\0\x7f\xff\xff\xff unknown schema"),
        Record(0, 4, 0, id.encode(), good.value[:20]),
        Record(0, 5, 0, id.encode(), good.value + b"more"),
        Record(0, 6, 0, None, good.value),
        Record(0, 7, 0, b"another key", good.value),
        Record(0, 8, 0, id.encode(), no_steps),
        Record(0, 9, 0, id.encode(), command),
        Record(0, 10, 0, id.encode(), in_the_year_9999),
        Record(0, 11, 0, id.encode(), platform.codec.encode("fluxora.SagaStarted", no_json)),
    ]
    last = saga_started(platform, len(poison), id)
    sent = run(platform, database, lambda processor, sent: processor.handle([*poison, last]))
    assert [row[1] for row in rows(database, JOURNAL)] == ["POISON"] * len(poison) + ["APPLIED"]
    letters = sent.records[: len(poison)]
    assert {letter.topic for letter in letters} == {"fluxora.transactions.dlq"}
    assert [letter.value for letter in letters] == [record.value or b"" for record in poison]
    for i, letter in enumerate(letters):
        headers = dict(letter.headers)
        assert headers["__connect.errors.topic"] == b"fluxora.transactions"
        assert headers["__connect.errors.offset"] == str(i).encode()
        assert headers["__connect.errors.exception.message"]


def test_a_transaction_cannot_be_folded_from_two_partitions(platform: Platform, database: str) -> None:
    id = new_id()
    run(platform, database, lambda processor, sent: processor.handle([saga_started(platform, 0, id)]))
    wrong = replied(platform, 0, id, partition=1)
    sent = run(platform, database, lambda processor, sent: processor.handle([wrong]))
    assert [record.topic for record in sent.records] == ["fluxora.transactions.dlq"]
    assert rows(database, "SELECT state FROM transactions") == [("EXECUTING",)]


def test_a_log_that_is_shorter_than_what_was_folded_is_refused(platform: Platform, database: str) -> None:
    async def refused(processor: Processor, sent: Sent) -> None:
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute("INSERT INTO partitions VALUES (3, %s, %s, %s)", (TOPIC_ID, 10**9, 10**9))
        await processor.adopt([3])
        with pytest.raises(Halted, match="ends at"):
            await processor.catch_up([3], stuck_after=0)

    run(platform, database, refused)


def test_inputs_that_retention_has_passed_are_an_alarm_not_a_skip(platform: Platform, database: str) -> None:
    async def refused(processor: Processor, sent: Sent) -> None:
        with pytest.raises((Halted, TimeoutError)):
            await processor._log.read(3, 10**9, 10**9 + 1)

    run(platform, database, refused)


def test_a_dead_letter_that_was_not_published_is_published_from_the_log(platform: Platform, database: str) -> None:
    producer = Producer({"bootstrap.servers": platform.endpoints["KAFKA_BOOTSTRAP_SERVERS"]})
    offsets: list[int] = []
    producer.produce(
        "fluxora.transactions",
        b"poison",
        b"k",
        partition=5,
        on_delivery=lambda error, message: offsets.append(message.offset() or 0),
    )
    assert producer.flush(30) == 0
    [offset] = offsets

    async def decide_and_die(processor: Processor, sent: Sent) -> None:
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute("INSERT INTO partitions VALUES (5, %s, %s, %s)", (TOPIC_ID, offset, offset))
        sent.fails = True
        with pytest.raises(ConnectionError):
            await processor.handle([Record(5, offset, 0, b"k", b"poison")])
        sent.fails = False

    sent = run(platform, database, decide_and_die, lambda processor, sent: processor.adopt([5]))
    assert [(record.topic, record.value) for record in sent.records] == [("fluxora.transactions.dlq", b"poison")]


PARTICIPANT = {
    "service_url": None,
    "prepare_endpoint": "/transaction/prepare",
    "commit_endpoint": "/transaction/commit",
    "abort_endpoint": "/transaction/abort",
}


def over_kafka(name: str) -> dict[str, Any]:
    return {"service_name": name, "transport": "KAFKA", "payload": '{"amount": 5}', **PARTICIPANT}


def over_http(name: str) -> dict[str, Any]:
    return {"service_name": name, "transport": "HTTP", "payload": '{"transaction_id": "forged", "n": 1}', **PARTICIPANT}


class Inputs:
    """The inputs of one two-phase commit, at one offset after the other."""

    def __init__(self, platform: Platform, offset: int = 0) -> None:
        self.platform = platform
        self.id = new_id()
        self.offset = offset

    def record(self, type: str, **fields: Any) -> Record:
        value = self.platform.codec.encode(f"fluxora.{type}", {"transaction_id": self.id, **fields})
        self.offset += 1
        return Record(0, self.offset - 1, 1_000 + self.offset - 1, self.id.encode(), value)

    def started(self, *participants: dict[str, Any], auto_commit: bool = False) -> Record:
        return self.record(
            "TransactionStarted", timeout_ms=30_000, auto_commit=auto_commit, participants=list(participants)
        )

    def request(self, request: str, id: str | None = None, **fields: Any) -> Record:
        return self.record("RequestMade", request_id=id or str(uuid.uuid4()), request=request, **fields)

    def reply(self, participant: str, operation: str, outcome: str = "DONE", attempt: int = 1) -> Record:
        return self.record(
            "ParticipantReplied",
            command_id="c",
            participant=participant,
            operation=operation,
            attempt=attempt,
            outcome=outcome,
        )


def asked(platform: Platform, sent: Sent) -> list[tuple[str, dict[str, Any]]]:
    """Commands that left, with their topics."""
    records = [record for record in sent.records if record.topic != "fluxora.transactions.events"]
    return [(record.topic, platform.codec.decode(record.value)[1]) for record in records]


def test_an_id_that_rest_gave_to_another_kind_is_of_the_kind_that_was_folded(platform: Platform, database: str) -> None:
    """Otherwise whoever reads the row next takes a two-phase commit for a saga, and ends, again and again."""
    inputs = Inputs(platform)
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO transactions (id, kind, name, state, services, version, definition, created_at, updated_at) "
            "VALUES (%s, 'saga', 'order', 'STARTED', '{}', 0, '{}', now(), now())",
            (inputs.id,),
        )
    first = inputs.started(over_kafka("alpha"))

    async def begin(processor: Processor, sent: Sent) -> None:
        await processor.handle([first])

    async def go_on(processor: Processor, sent: Sent) -> None:
        await processor.handle([inputs.request("PREPARE")])

    run(platform, database, begin, go_on)
    assert rows(database, "SELECT kind, state FROM transactions") == [("transaction", "PREPARING")]


def test_a_two_phase_commit_goes_through_the_same_loop(platform: Platform, database: str) -> None:
    inputs = Inputs(platform)
    request_id = str(uuid.uuid4())
    first = [
        inputs.started(over_kafka("alpha"), auto_commit=False),
        inputs.request("COMMIT"),
        inputs.request("ADD_PARTICIPANT", participant=over_http("beta")),
        inputs.request("PREPARE", request_id),
    ]
    votes = [inputs.reply("alpha", "PREPARE"), inputs.reply("beta", "PREPARE")]
    last = [inputs.request("COMMIT"), inputs.reply("beta", "COMMIT"), inputs.reply("alpha", "COMMIT")]
    heard: list[str] = []

    async def deliver(processor: Processor, sent: Sent) -> None:
        with psycopg.connect(database, autocommit=True) as listener:
            listener.execute("LISTEN fluxora_changed")
            for batch in (first[:1], first[1:], votes[:1], votes[1:], last):
                await processor.handle(batch)
                patience = 1 if batch == votes[:1] else 30
                found = [notify.payload for notify in listener.notifies(timeout=patience, stop_after=1)]
                heard.append(found[0] if found else "")

    sent = run(platform, database, deliver)
    journal = rows(database, 'SELECT outcome, state, reason FROM journal ORDER BY "offset"')
    assert [row[:2] for row in journal] == [
        ("APPLIED", "STARTED"),
        ("REJECTED", "STARTED"),
        ("APPLIED", "STARTED"),
        ("APPLIED", "PREPARING"),
        ("APPLIED", "PREPARING"),
        ("APPLIED", "PREPARED"),
        ("APPLIED", "COMMITTING"),
        ("APPLIED", "COMMITTING"),
        ("APPLIED", "COMMITTED"),
    ]
    assert "STARTED" in journal[1][2]
    # One who waits is told of every change of state, and of the answer to every request; not of a single vote.
    assert [bool(text) for text in heard] == [True, True, False, True, True]
    assert set(heard) == {inputs.id, ""}
    assert rows(database, "SELECT kind, name, state, services, next_deadline FROM transactions") == [
        ("transaction", "transaction", "COMMITTED", ["alpha", "beta"], None)
    ]
    found = rows(
        database,
        f"SELECT outcome FROM journal WHERE input->>'request_id' = '{request_id}' AND transaction_id IS NOT NULL",
    )
    assert found == [("APPLIED",)]
    commands = asked(platform, sent)
    assert [(topic, body["operation"], body["attempt"]) for topic, body in commands] == [
        ("alpha.commands", "PREPARE", 1),
        ("fluxora.http.commands", "PREPARE", 1),
        ("alpha.commands", "COMMIT", 1),
        ("fluxora.http.commands", "COMMIT", 1),
    ]
    to_alpha, to_beta = commands[0][1], commands[1][1]
    assert to_alpha["payload"] == '{"amount": 5}'
    assert to_alpha["command_id"] == f"{inputs.id}:alpha:prepare:1"
    assert round(to_alpha["expires_at"].timestamp() * 1000) == 31_000
    assert commands[2][1]["expires_at"] is None, "what is decided does not expire"
    assert orjson.loads(to_beta["body"]) == {"transaction_id": inputs.id, "n": 1}
    assert (to_beta["endpoint"], to_beta["timeout_ms"]) == ("/transaction/prepare", Policy().attempt_timeout_ms)
    assert to_beta["idempotency_key"] == f"{inputs.id}:beta:prepare"
    events = [platform.codec.decode(record.value) for record in sent.records if record.topic.endswith(".events")]
    assert {name for name, _ in events} == {"fluxora.TransactionEvent"}
    assert [event["sequence"] for _, event in events] == list(range(1, len(events) + 1))
    assert events[-1][1]["type"] == "TransactionCommitted"


def test_a_crash_between_the_decision_and_its_publication_sends_the_decision_and_no_other(
    platform: Platform, database: str
) -> None:
    inputs = Inputs(platform)

    async def decide_and_die(processor: Processor, sent: Sent) -> None:
        await processor.handle(
            [inputs.started(over_kafka("alpha"), over_http("beta"), auto_commit=True), inputs.request("PREPARE")]
        )
        await processor.handle([inputs.reply("alpha", "PREPARE")])
        sent.records.clear()
        sent.fails = True
        with pytest.raises(ConnectionError):
            await processor.handle([inputs.reply("beta", "PREPARE")])
        assert sent.records == [], "nothing has left"
        sent.fails = False

    async def take_over(processor: Processor, sent: Sent) -> None:
        # The clock and a client come before the decision has left: neither can turn it.
        await processor.adopt([0])
        await processor.handle(
            [inputs.record("DeadlinePassed", due_at=31_000), inputs.request("ABORT"), inputs.reply("beta", "PREPARE")]
        )

    sent = run(platform, database, decide_and_die, take_over)
    first = [(topic, body["operation"], body["attempt"]) for topic, body in asked(platform, sent)]
    assert first == [("alpha.commands", "COMMIT", 1), ("fluxora.http.commands", "COMMIT", 1)]
    assert [row[1] for row in rows(database, JOURNAL)[-3:]] == ["APPLIED", "REJECTED", "IGNORED"]

    async def acknowledge(processor: Processor, sent: Sent) -> None:
        await processor.handle([inputs.reply("alpha", "COMMIT"), inputs.reply("beta", "COMMIT")])

    run(platform, database, acknowledge)
    assert rows(database, "SELECT state FROM transactions") == [("COMMITTED",)]


def test_a_transaction_restored_from_the_database_goes_on_where_it_was(platform: Platform, database: str) -> None:
    """Every input by a processor of its own: nothing lives in memory."""
    inputs = Inputs(platform)
    records = [
        inputs.started(over_kafka("alpha")),
        inputs.request("ADD_PARTICIPANT", participant=over_http("beta")),
        inputs.request("ADD_PARTICIPANT", participant=over_http("gamma")),
        inputs.request("PREPARE"),
        inputs.reply("beta", "PREPARE"),
        inputs.reply("gamma", "PREPARE", "UNKNOWN"),
        inputs.reply("alpha", "PREPARE"),
        inputs.reply("alpha", "ABORT"),
        inputs.reply("beta", "ABORT", "NO_SUCH_TRANSACTION"),
        inputs.reply("gamma", "ABORT"),
    ]
    run(platform, database, *(lambda processor, sent, r=record: processor.handle([r]) for record in records))  # type: ignore[misc]
    verdicts = [row[1] for row in rows(database, JOURNAL)]
    assert verdicts == ["APPLIED"] * 6 + ["IGNORED"] + ["APPLIED"] * 3
    [(state, services, progress)] = rows(database, "SELECT state, services, progress FROM transactions")
    assert (state, services) == ("ABORTED", ["alpha", "beta", "gamma"])
    assert [participant["state"] for participant in progress["participants"]] == ["ABORTED", "ABORTED", "FAILED"]


def test_inputs_of_a_two_phase_commit_that_break_a_rule_are_poison(platform: Platform, database: str) -> None:
    inputs = Inputs(platform)
    poison = [
        inputs.started(over_kafka("a"), over_kafka("a")),
        inputs.started(over_kafka("a") | {"payload": "[]"}),
        inputs.started(over_kafka("a") | {"payload": "[" * 100_000}),
        inputs.request("ADD_PARTICIPANT"),
        inputs.request("ADD_PARTICIPANT", participant=over_http("a") | {"commit_endpoint": "//evil/"}),
        inputs.request("ADD_PARTICIPANT", participant=over_http("a") | {"service_url": "http://user@evil/"}),
        inputs.request("MAKE_COFFEE"),
        inputs.request("PREPARE", "not a uuid"),
        inputs.request("PREPARE", who="\0"),
    ]
    other = [inputs.started(over_kafka("a")), inputs.reply("nobody", "PREPARE"), replied(platform, 11, inputs.id)]
    run(platform, database, lambda processor, sent: processor.handle([*poison, *other]))
    outcomes = [row[1] for row in rows(database, JOURNAL)]
    assert outcomes == ["POISON"] * len(poison) + ["APPLIED", "REJECTED", "REJECTED"]


def test_a_request_is_decided_once_however_often_it_comes(platform: Platform, database: str) -> None:
    """The caller was told no; a second copy that comes when the answer would be yes must not commit behind its back."""
    inputs = Inputs(platform)
    early, again = str(uuid.uuid4()), str(uuid.uuid4())
    first = [inputs.started(over_kafka("alpha")), inputs.request("PREPARE"), inputs.request("COMMIT", early)]
    then = [inputs.reply("alpha", "PREPARE"), inputs.request("COMMIT", early)]
    last = [inputs.request("COMMIT", again), inputs.request("COMMIT", again)]
    batches = (first, then, last)
    sent = run(
        platform,
        database,
        *(lambda processor, sent, batch=batch: processor.handle(batch) for batch in batches),  # type: ignore[misc]
    )
    outcomes = [row[1:] for row in rows(database, JOURNAL)]
    assert outcomes[2:] == [
        ("REJECTED", "PREPARING"),
        ("APPLIED", "PREPARED"),
        ("IGNORED", "PREPARED"),
        ("APPLIED", "COMMITTING"),
        ("IGNORED", "COMMITTING"),
    ]
    # Each processor publishes its predecessor's last batch again, with the same ids.
    left = {body["command_id"] for _, body in asked(platform, sent)}
    assert left == {f"{inputs.id}:alpha:prepare:1", f"{inputs.id}:alpha:commit:1"}


def test_a_first_input_in_a_partition_where_its_key_does_not_belong_is_poison(
    platform: Platform, database: str
) -> None:
    """Bound to that partition, the transaction would never see an answer: those go where the key belongs."""
    id = new_id(partition=3)
    misrouted = saga_started(platform, 0, id, partition=0)
    sent = run(platform, database, lambda processor, sent: processor.handle([misrouted]))
    assert [record.topic for record in sent.records] == ["fluxora.transactions.dlq"]
    assert "partition 3" in rows(database, "SELECT reason FROM journal")[0][0]
    run(platform, database, lambda processor, sent: processor.handle([saga_started(platform, 0, id, partition=3)]))
    assert rows(database, "SELECT id::text, partition FROM transactions") == [(id, 3)]
