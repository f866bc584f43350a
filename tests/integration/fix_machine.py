"""A processor in small, for tests of REST: reads the outbox, folds with the real machine, writes journal and state.

It stands for Debezium, Kafka and the processors together, so that what REST does is tested on a real PostgreSQL
without them. Participants answer at once, by ``votes``.
"""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import orjson
import psycopg

from saga_processors import codec as codecs
from saga_processors.machines import Machine, advance
from saga_processors.records import from_ms
from saga_processors.transaction import AskParticipant, Operation, Outcome, ParticipantReplied, Transaction
from schemas import Codec


class SmallProcessor:
    def __init__(self, database_url: str) -> None:
        self._url = database_url
        self._codec = Codec(os.environ["SCHEMA_REGISTRY_URL"])
        self._machines: dict[str, Machine] = {}
        self._seen: set[Any] = set()
        self._offset = 0
        self._stop = threading.Event()
        #: Cleared: nothing is folded.
        self.running = threading.Event()
        self.running.set()
        #: What a participant answers to prepare; default: yes. ``None``: nothing.
        self.votes: dict[str, Outcome | None] = {}
        #: Participants that do not acknowledge commit and abort.
        self.deaf: set[str] = set()
        #: Seconds that every input takes.
        self.slow = 0.0
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="small-processor")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self.running.set()
        self._thread.join()
        self._codec.close()
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        try:
            with psycopg.connect(self._url, autocommit=True) as connection:
                while not self._stop.wait(0.01):
                    self.running.wait()
                    self._fold_new(connection)
        except BaseException as error:
            self.error = error

    def _fold_new(self, connection: psycopg.Connection[Any]) -> None:
        rows = connection.execute(
            "SELECT id, payload FROM fluxora.outbox WHERE created_at > now() - interval '1 minute' "
            "AND type IN ('fluxora.TransactionStarted', 'fluxora.RequestMade') ORDER BY created_at, id"
        ).fetchall()
        for id, payload in rows:
            if id in self._seen or self._stop.is_set():
                continue
            self._seen.add(id)
            if self.slow:
                time.sleep(self.slow)
            name, record = self._codec.decode(payload)
            self._fold(connection, record["transaction_id"], name, record, codecs.input_from_record(name, record))

    def _fold(
        self, connection: psycopg.Connection[Any], id: str, name: str, record: dict[str, Any], event: Any
    ) -> None:
        at = round(time.time() * 1000)
        decision = advance(self._machines.get(id), event, at)
        machine = decision.machine
        self._offset += 1
        with connection.transaction():
            connection.execute(
                'INSERT INTO journal (partition, "offset", transaction_id, input_type, input, outcome, reason, state, '
                "effects, at) VALUES (0, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
                (
                    self._offset,
                    id,
                    name,
                    orjson.dumps(codecs.input_to_json(record)).decode(),
                    decision.verdict.value,
                    decision.reason,
                    None if machine is None else machine.state.value,
                    orjson.dumps([codecs.effect_to_json(effect) for effect in decision.effects]).decode()
                    if decision.effects
                    else None,
                    datetime.fromtimestamp(at / 1000, UTC),
                ),
            )
            if isinstance(machine, Transaction):
                self._machines[id] = machine
                connection.execute(
                    "UPDATE transactions SET state = %s, version = version + 1, progress = %s, services = %s, "
                    "needs_attention = %s, updated_at = %s WHERE id = %s",
                    (
                        machine.state.value,
                        orjson.dumps(codecs.progress_to_json(machine)).decode(),
                        [participant.definition.service_name for participant in machine.participants],
                        machine.needs_attention,
                        from_ms(machine.updated_at),
                        id,
                    ),
                )
            connection.execute("SELECT pg_notify('fluxora_changed', %s)", (id,))
        for effect in decision.effects:
            if isinstance(effect, AskParticipant):
                self._answer(connection, id, effect)

    def _answer(self, connection: psycopg.Connection[Any], id: str, asked: AskParticipant) -> None:
        machine = self._machines[id]
        assert isinstance(machine, Transaction)
        name = machine.participants[asked.participant].definition.service_name
        outcome: Outcome | None = Outcome.DONE
        if asked.operation is Operation.PREPARE:
            outcome = self.votes.get(name, Outcome.DONE)
        elif name in self.deaf:
            outcome = None
        if outcome is not None:
            reply = ParticipantReplied(name, asked.operation, asked.attempt, outcome)
            record = {"participant": name, "operation": asked.operation.value, "outcome": outcome.value}
            self._fold(connection, id, "fluxora.ParticipantReplied", record, reply)


@contextmanager
def folding(database_url: str) -> Iterator[SmallProcessor]:
    processor = SmallProcessor(database_url)
    processor.start()
    try:
        yield processor
    finally:
        processor.stop()
