"""The code that runs for every saga, without databases and brokers, and a plain piece of work to compare it with.

Each function does its work ``count`` times and returns nothing: whoever calls it takes the CPU time.
"""

import io
import time
import uuid
from collections.abc import Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import fastavro
import orjson

from participant.command import Command, Operation, Outcome, Reply, command_from, reply_from, reply_record
from participant.events import event_type
from participant.incoming import decoder
from participant.outbox import publish
from participant.sagas import Step, started
from saga_processors.partition import Record
from saga_processors.processor import Processor
from saga_processors.store import BatchWrite, Store
from saga_processors.transaction_definition import DEFAULT_POLICY
from schemas import Codec
from schemas.registration import SCHEMAS
from schemas.registry import MemoryRegistry

NAMES = ("stock", "payment", "shipping")
#: Inputs in a batch, as under load.
BATCH = 100
_AT = int(time.time() * 1000)


class Reference:
    """Plain fastavro, orjson and Python: about what a saga's data cost without us. It must never change."""

    _SCHEMA = fastavro.parse_schema(
        {
            "type": "record",
            "name": "Reference",
            "fields": [
                {"name": "id", "type": "string"},
                {"name": "number", "type": "int"},
                {"name": "note", "type": ["null", "string"]},
                {
                    "name": "parts",
                    "type": {
                        "type": "array",
                        "items": {
                            "type": "record",
                            "name": "Part",
                            "fields": [
                                {"name": "name", "type": "string"},
                                {"name": "amount", "type": "long"},
                                {"name": "tags", "type": {"type": "array", "items": "string"}},
                            ],
                        },
                    },
                },
            ],
        }
    )

    def run(self, count: int) -> None:
        for i in range(count):
            parts = [{"name": f"part-{k}", "amount": i * k, "tags": ["a", "b", str(k)]} for k in range(3)]
            record = {"id": str(uuid.UUID(int=i)), "number": i, "note": None, "parts": parts}
            buffer = io.BytesIO()
            fastavro.schemaless_writer(buffer, self._SCHEMA, record)
            back = fastavro.schemaless_reader(io.BytesIO(buffer.getvalue()), self._SCHEMA, None)
            assert isinstance(back, dict)
            text = orjson.dumps({name: value for name, value in back.items() if value is not None}).decode()
            assert orjson.loads(text)["number"] == i
            assert sorted(parts, key=lambda part: part["amount"])[0]["name"]


class Fold:
    """Whole sagas through a processor: decode, decide, encode what leaves, and what would be written to the tables."""

    def __init__(self) -> None:
        self._codec = Codec(_registry())
        self._processor = Processor(
            store=None,  # type: ignore[arg-type]
            codec=self._codec,
            input_log=None,  # type: ignore[arg-type]
            publisher=None,  # type: ignore[arg-type]
            topic_id="topic",
            partitions=1,
            batch_size=1000,
            cache_size=20_000,
            max_steps=1000,
            policy=DEFAULT_POLICY,
        )
        self._offset = 0

    def starts(self, count: int) -> list[tuple[bytes, bytes]]:
        """Inputs that start as many sagas, as they come from an outbox."""
        steps = [Step(name, {"refuse": False}, name=name, command="do") for name in NAMES]
        ids = [uuid.uuid4() for _ in range(count)]
        return [
            (str(id).encode(), self._codec.encode("fluxora.SagaStarted", started(id, "order", steps))) for id in ids
        ]

    def fold(self, inputs: list[tuple[bytes, bytes]]) -> list[Any]:
        """Fold inputs in batches; returns what leaves."""
        return [record for i in range(0, len(inputs), BATCH) for record in self._batch(inputs[i : i + BATCH])]

    def answers(self, effects: list[Any]) -> list[tuple[bytes, bytes]]:
        """What the services reply to the commands among effects."""
        found = []
        for effect in effects:
            if effect.topic.endswith(".commands"):
                command = command_from(self._codec.decode(effect.value)[1])
                reply = reply_record(command, Reply(Outcome.DONE, '{"amount":1}'))  # type: ignore[arg-type]
                found.append((effect.key, self._codec.encode("fluxora.StepReplied", reply)))
        return found

    def _batch(self, inputs: list[tuple[bytes, bytes]]) -> list[Any]:
        processor = self._processor
        records = [Record(0, self._offset + k, _AT, key, value) for k, (key, value) in enumerate(inputs)]
        self._offset += len(records)
        decoded = [processor._decode(record) for record in records]
        write = BatchWrite()
        effects = [effect for one in decoded for effect in processor._decide(one, write)]
        _run(_write(write))
        processor._tidy_cache(write)
        return effects


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Without an event loop, which costs more than what is measured: nothing in here waits."""
    try:
        work.send(None)
    except StopIteration:
        return
    raise AssertionError("it waits for something")


async def _write(write: BatchWrite) -> None:
    store = Store(_NoDatabase())  # type: ignore[arg-type]
    await store._insert_journal(write.journal)
    if write.created:
        await store._upsert(write.created)
    if write.changed:
        await store._update(write)


class _NoDatabase:
    """Takes statements, and does nothing."""

    async def execute(self, statement: str, parameters: object = None) -> SimpleNamespace:
        return SimpleNamespace(rowcount=0)


class Participant:
    """A service's batch, without its database: commands are decoded, answers checked and encoded."""

    def __init__(self) -> None:
        self._codec = Codec(_registry())
        self._decode = decoder(self._codec)
        record = {
            "transaction_id": str(uuid.uuid4()),
            "saga_name": "order",
            "step": "stock",
            "command": "do",
            "operation": Operation.ACTION.value,
            "attempt": 1,
            "command_id": "id:stock:action:1",
            "final": False,
            "must_succeed": False,
            "payload": '{"refuse":false}',
            "result": None,
        }
        self._value = self._codec.encode("fluxora.StepCommand", record)

    def run(self, count: int) -> None:
        for _ in range(count):
            command = self._decode(self._value, None)
            assert isinstance(command, Command)
            reply = reply_from(command, {"amount": 1})
            self._codec.encode("fluxora.StepReplied", reply_record(command, reply))


@event_type("bench.HotPath", topic="bench.hot-path", key="customer")
@dataclass(frozen=True)
class Placed:
    """An event of a user's."""

    order: uuid.UUID
    customer: int
    total: Decimal
    placed_at: datetime
    note: str | None = None


class Publish:
    """``outbox.publish`` of a typed event, up to the statement."""

    def __init__(self) -> None:
        self._codec = Codec(MemoryRegistry())
        self._event = Placed(uuid.uuid4(), 7, Decimal("12.50"), datetime(2026, 1, 1, tzinfo=UTC))
        self._connection = _NoConnection()

    def run(self, count: int) -> None:
        for _ in range(count):
            publish(self._connection, self._event, codec=self._codec)  # type: ignore[arg-type]


class _NoConnection:
    """Takes statements, and does nothing."""

    def exec_driver_sql(self, statement: str, parameters: object) -> None:
        assert parameters


def _registry() -> MemoryRegistry:
    """With ids as they are after ``fluxora init``."""
    registry = MemoryRegistry()
    for name, schema in SCHEMAS.items():
        registry.id_of(name, orjson.dumps(schema).decode())
    return registry
