"""The running platform as its users see it: sagas over REST, rows in the services' database, processes to kill."""

import os
import signal
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import psycopg
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Message, TopicPartition

from deploy.stack import Stack
from deploy.status import StackStatus
from schemas import Codec

TERMINAL = ("COMPLETED", "FAILED")


@dataclass(frozen=True)
class Step:
    """A step of a ledger service; see tests/services/ledger.py for what the payload may say."""

    service: str
    payload: dict[str, Any]

    def as_json(self, number: int) -> dict[str, Any]:
        return {
            "name": f"s{number}",
            "service_name": self.service,
            "command": "enter",
            "payload": self.payload,
            "retry": {"max_attempts": 3, "initial_delay_seconds": 0.05, "max_delay_seconds": 0.5},
            "timeout_seconds": 20,
        }


def steps(*payloads: dict[str, Any]) -> list[Step]:
    """One step for each payload, over the three services in turn."""
    return [Step(("alpha", "beta", "gamma")[i % 3], payload) for i, payload in enumerate(payloads)]


class Platform:
    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.endpoints = stack.endpoints()
        self.http = httpx.Client(base_url=self.endpoints["COORDINATOR_URL"], timeout=70)
        self.codec = Codec(self.endpoints["SCHEMA_REGISTRY_URL"])
        self.crash_dir = Path(stack.root) / "crash"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.http.close()
        self.codec.close()

    # Sagas

    def start(self, saga: Sequence[Step], **more: Any) -> str:
        body = {"name": "ledger", "steps": [step.as_json(i) for i, step in enumerate(saga)], **more}
        answer = self.http.post("/sagas", json=body)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["saga_id"])

    def wait(self, saga_id: str, seconds: float = 60) -> dict[str, Any]:
        """The saga when it has ended; fails the test when it has not after ``seconds``."""
        saga: dict[str, Any] = self.http.get(f"/sagas/{saga_id}", params={"wait": f"{min(seconds, 60):g}s"}).json()
        assert saga["state"] in TERMINAL, f"not ended after {seconds} s: {saga}"
        return saga

    def wait_all(self, saga_ids: Iterable[str], seconds: float = 180) -> dict[str, str]:
        """States of the sagas, once all have ended. Asks the database, so that it works while REST is down."""
        wanted = list(saga_ids)
        deadline = time.monotonic() + seconds
        while True:
            rows = self.query("fluxora", "SELECT id::text, state FROM transactions WHERE id = ANY(%s::uuid[])", wanted)
            states = dict(rows)
            open_ones = [id for id in wanted if states.get(id) not in TERMINAL]
            if not open_ones:
                return states
            if time.monotonic() > deadline:
                stuck = self.query(
                    "fluxora",
                    "SELECT id, state, progress, next_deadline FROM transactions WHERE id = ANY(%s::uuid[])",
                    open_ones[:3],
                )
                raise AssertionError(f"{len(open_ones)} of {len(wanted)} sagas have not ended: {stuck}")
            time.sleep(0.2)

    # Two-phase commits

    def decided(self, id: str, verb: str, seconds: float = 120) -> httpx.Response:
        """Ask it of the transaction, as one request, until it is decided: 202 means not yet, 503 that it cannot be."""
        path, headers = f"/transactions/{id}/{verb}", {"Idempotency-Key": str(uuid.uuid4())}
        deadline = time.monotonic() + seconds
        while True:
            told = "nobody is there"
            with suppress(httpx.TransportError):
                answer = self.http.post(path, headers=headers)
                if answer.status_code not in (202, 503):
                    return answer
                told = f"{answer.status_code} {answer.text}"
            assert time.monotonic() < deadline, f"{path}: {told}"
            time.sleep(0.1)

    def transaction_in(self, id: str, *states: str, seconds: float = 120) -> dict[str, Any]:
        """The transaction when it is in one of ``states``.

        Fails as soon as it has ended otherwise, or after ``seconds``, and says what the participants say.
        """
        deadline = time.monotonic() + seconds
        while (found := self.http.get(f"/transactions/{id}").json())["state"] not in states:
            over = found["state"] in ("COMMITTED", "ABORTED") or (
                found["state"] == "ABORTING" and "ABORTED" not in states
            )
            if over or time.monotonic() > deadline:
                told = Counter(f"{one['state']}: {one.get('reason')}" for one in found["participants"])
                raise AssertionError(
                    f"{found['state']} and not {' or '.join(states)} ({found.get('reason')}); participants: "
                    + "; ".join(f"{count} × {what}" for what, count in told.most_common(10))
                )
            time.sleep(0.1)
        return found

    # What happened

    def query(self, database: str, sql: str, *parameters: Any) -> list[Any]:
        url = self.endpoints["DATABASE_URL"].removesuffix("fluxora") + database
        for _ in range(100):
            try:
                with psycopg.connect(url, autocommit=True) as connection:
                    return connection.execute(sql, parameters).fetchall()  # type: ignore[arg-type]
            except psycopg.OperationalError:
                time.sleep(0.2)  # a test may have killed it
        raise AssertionError("PostgreSQL does not come back")

    def entries(self, saga_ids: Iterable[str]) -> dict[str, Counter[tuple[str, str]]]:
        """For each saga how often each (step, operation) took effect."""
        found: dict[str, Counter[tuple[str, str]]] = {id: Counter() for id in saga_ids}
        for id, step, operation in self.query(
            "fluxora_ledger",
            "SELECT saga::text, step, operation FROM entries WHERE saga = ANY(%s::uuid[])",
            list(found),
        ):
            found[id][step, operation] += 1
        return found

    def check_whole_or_undone(self, expected: dict[str, int | None], states: dict[str, str], count: int = 3) -> None:
        """Every effect once, none lost: a completed saga's are all there, a failed one's are undone.

        Args:
            expected: for each saga the number of the step that refuses, ``None`` if none does.
            count: steps of each saga.
        """
        problems = []
        for id, entries in self.entries(expected).items():
            refused = expected[id]
            if refused is None:
                state, wanted = "COMPLETED", Counter({(f"s{i}", "ACTION"): 1 for i in range(count)})
            else:
                state = "FAILED"
                wanted = Counter({(f"s{i}", op): 1 for i in range(refused) for op in ("ACTION", "COMPENSATION")})
            if states[id] != state or entries != wanted:
                problems.append(f"{id}: {states[id]}, {dict(entries)}; expected {state}, {dict(wanted)}")
        assert not problems, f"{len(problems)} of {len(expected)} sagas: " + "\n".join(problems[:5])

    def records_of(self, topic: str, key: str) -> list[Message]:
        """All records of ``topic`` with this key; in order of the log if they lie in one partition."""
        consumer = Consumer(
            {
                "bootstrap.servers": self.endpoints["KAFKA_BOOTSTRAP_SERVERS"],
                # Named, because the client wants one; nobody joins it, since that takes seconds.
                "group.id": f"reader-{uuid.uuid4()}",
                "enable.auto.commit": False,
                "enable.partition.eof": True,
            }
        )
        found, ended = [], set()
        try:
            partitions = consumer.list_topics(topic, timeout=30).topics[topic].partitions
            consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in partitions])
            deadline = time.monotonic() + 60
            while len(ended) < len(partitions):
                message = consumer.poll(1)
                if message is None:
                    assert time.monotonic() < deadline, f"{topic} does not answer"
                elif (error := message.error()) is None:
                    if message.key() == key.encode():
                        found.append(message)
                elif error.code() == KafkaError._PARTITION_EOF:
                    ended.add(message.partition())
        finally:
            consumer.close()
        return found

    # Faults

    def kill(self, name: str, number: int = signal.SIGKILL) -> int:
        """Kill a supervised process; returns the pid it had."""
        pid = self.stack.pid(name)
        os.kill(pid, number)
        return pid

    def restarted(self, name: str, pid: int, seconds: float = 120) -> None:
        """Wait until the supervisor has put another process in the place of ``pid``."""
        self.until(lambda: self.stack.pid(name) != pid, f"{name} was not started again", seconds)

    def all_ready(self, seconds: float = 120) -> None:
        """Wait until every process of the stack is up again."""
        deadline = time.monotonic() + seconds
        while (status := StackStatus.read(self.stack.root)) is None or status.not_up():
            assert time.monotonic() < deadline, f"not up within {seconds} s: {status and status.not_up()}"
            time.sleep(0.1)

    def crash_once_at(self, point: str) -> None:
        """The next process that comes to this line dies there."""
        (self.crash_dir / point).touch()

    def crashed(self, point: str, seconds: float = 120) -> None:
        """Wait until one has."""
        self.until(lambda: not (self.crash_dir / point).exists(), f"nobody came to {point}", seconds)

    @staticmethod
    def until(condition: Callable[[], object], what: str, seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while not _quietly(condition):
            assert time.monotonic() < deadline, f"{what} within {seconds} s"
            time.sleep(0.1)


def _quietly(condition: Callable[[], object]) -> object:
    try:
        return condition()
    except Exception:
        return False
