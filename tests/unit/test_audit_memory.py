"""What ``fluxora audit`` and ``fluxora dlq`` hold in memory does not grow with what they look at.

Each works on so many rows or records that holding them would take several times the limit (told beside each).
"""

import sqlite3
import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID

import pytest
from confluent_kafka import Consumer, Message

from fluxora import audit, dead_letters, topic_reader
from fluxora.audit import DatabaseAudit
from fluxora.awaited import AwaitedRows, Row
from fluxora.topic_reader import NoSuchTopic, Range, TopicReader, TopicUnavailable

LIMIT = 3 << 20
COUNT = 20_000
BEGIN = datetime(2026, 11, 23, 7, tzinfo=UTC)


def peak(work: Callable[[], Any]) -> tuple[Any, int]:
    """What ``work`` returns, and the most bytes that Python held meanwhile."""
    tracemalloc.start()
    try:
        return work(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def id_of(n: int) -> UUID:
    return UUID(int=n)


def rows(count: int) -> Iterator[tuple[UUID, str, str, str, datetime]]:
    """Rows of an outbox: two topics in turn. As objects in a dict they take over 6 MiB."""
    for n in range(count):
        yield id_of(n), f"topic-{n % 2}", f"key-{n}", f"type-{n}", BEGIN + timedelta(microseconds=n)


class Record:
    """As much of a record as is looked at."""

    def __init__(self, n: int, headers: dict[str, bytes], value: bytes = b"") -> None:
        self._n, self._headers, self._value = n, headers, value

    def headers(self) -> list[tuple[str, bytes]]:
        return list(self._headers.items())

    def topic(self) -> str:
        return "billing.commands.dlq"

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return self._n

    def timestamp(self) -> tuple[int, int]:
        return 1, self._n

    def key(self) -> bytes:
        return b"k"

    def value(self) -> bytes:
        return self._value

    def error(self) -> None:
        return None


class Reader:
    """In place of ``TopicReader``: every row is in its topic but each thousandth."""

    def __init__(self, bootstrap_servers: str, topic: str) -> None:
        self._parity = int(topic[-1])

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def ranges(self, *, since: int | None = None) -> list[Range]:
        return [Range(0, 0, COUNT)]

    def read(self, ranges: Sequence[Range], progress: object = None) -> Iterator[Record]:
        for n in range(self._parity, COUNT, 2):
            if n % 1000:
                yield Record(n, {"ce_id": str(id_of(n)).encode()})


class Cursor:
    """A server-side cursor: rows come as they are asked for."""

    itersize = 0

    def __enter__(self) -> "Cursor":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def execute(self, statement: str, values: object) -> None:
        pass

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return rows(COUNT)


class Database:
    """As much of a connection as a snapshot needs; a cursor of the client's would have every row at once."""

    @contextmanager
    def transaction(self) -> Iterator[None]:
        yield

    def cursor(self, *, name: str) -> Cursor:
        assert name
        return Cursor()

    def execute(self, statement: str, values: object = None) -> "Database":
        self._answer = BEGIN if "now()" in statement else "0/0"
        return self

    def fetchone(self) -> tuple[Any]:
        return (self._answer,)


def test_an_audit_holds_its_rows_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "TopicReader", Reader)
    # What SQLite holds is not Python's memory: of it counts that the database is a file, which the empty name means.
    opened: list[str] = []
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda name, **more: opened.append(name) or connect(name, **more))

    def compare() -> tuple[int, list[Row]]:
        with AwaitedRows() as awaited:
            snapshot = audit._snapshot(cast(Any, Database()), awaited, None)
            assert audit._take_out_arrived(awaited, "", lambda topic: lambda done, total: None) == 0
            return snapshot.rows, list(awaited.ordered(10))

    (compared, left), bytes = peak(compare)
    assert compared == COUNT
    assert opened == [""]
    assert [row.id for row in left] == [id_of(n * 1000) for n in range(10)]
    assert (left[1].topic, left[1].key, left[1].type) == ("topic-0", "key-1000", "type-1000")
    assert left[1].created_at == BEGIN + timedelta(microseconds=1000)
    assert bytes < LIMIT


def test_rows_are_published_again_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them, in their order, however few are named."""
    asked: list[UUID] = []
    monkeypatch.setattr(audit, "Sender", lambda servers: Sent())
    monkeypatch.setattr(
        audit, "_publish", lambda connection, sender, ids: asked.extend(ids) or longest.append(len(ids))
    )
    longest: list[int] = []
    with AwaitedRows() as awaited:
        awaited.add(Row(*row) for row in rows(5_001))
        audit._refill(cast(Any, None), "", awaited)
    assert asked == [id_of(n) for n in range(5_001)]
    assert max(longest) <= 2_000


class Sent:
    acknowledged = 0

    def finish(self) -> None:
        pass


def test_what_is_older_than_its_topic_is_left_out_of_that_topic_only() -> None:
    with AwaitedRows() as awaited:
        awaited.add(Row(*row) for row in rows(100))
        assert awaited.leave_out("topic-0", BEGIN + timedelta(microseconds=50)) == 25
        assert awaited.oldest() == BEGIN + timedelta(microseconds=1)
        # The same id in another topic is another's.
        awaited.arrived("topic-0", [str(id_of(1)), str(id_of(50)), "no id"])
        assert len(awaited) == 74
        assert awaited.topics() == [
            ("topic-0", BEGIN + timedelta(microseconds=52)),
            ("topic-1", BEGIN + timedelta(microseconds=1)),
        ]
        awaited.arrived("topic-1", (str(id_of(n)) for n in range(100)))
        assert not awaited.any_of("topic-1") and awaited.any_of("topic-0")


def test_more_are_missing_than_are_named() -> None:
    found = DatabaseAudit("connector", "database", missing_rows=3)
    assert not found.sound
    assert audit.as_json([found])[0]["missing_rows"] == 3


def letters(count: int) -> Iterable[tuple[dead_letters.Letter, Message]]:
    """Letters of 2 KiB; the newest come first."""
    headers = {"__connect.errors.topic": b"billing.commands", "__connect.errors.exception.message": b"x" * 200}
    for n in reversed(range(count)):
        message = cast(Message, Record(n, headers, bytes(2_000)))
        yield dead_letters._letter(message), message


class Producer:
    """Takes a record and forgets it."""

    def __init__(self, settings: dict[str, Any]) -> None:
        assert settings["queue.buffering.max.kbytes"] <= 64 << 10

    def produce(self, *record: object, **more: object) -> None:
        cast(Any, more["on_delivery"])(None, None)

    def poll(self, seconds: float) -> None:
        pass

    def flush(self, seconds: float) -> int:
        return 0


def test_letters_are_shown_and_sent_back_without_being_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fluxora.sending.Producer", Producer)
    shown, bytes = peak(lambda: dead_letters.newest(letters(COUNT // 2), 50))
    assert [letter.offset for letter in shown] == list(range(COUNT // 2 - 50, COUNT // 2))
    assert bytes < LIMIT
    checked, bytes = peak(lambda: dead_letters.check(letters(COUNT // 2)))
    assert (checked, bytes < LIMIT) == (COUNT // 2, True)
    (_, sent), bytes = peak(lambda: dead_letters.redrive("", letters(COUNT // 2)))
    assert (sent, bytes < LIMIT) == (COUNT // 2, True)


class Topic:
    """A consumer of a topic with large records, which gives as many at once as it is asked for."""

    def __init__(self, settings: dict[str, Any]) -> None:
        assert settings["queued.max.messages.kbytes"] <= 64 << 10
        self.left = iter(range(1_000))

    def assign(self, partitions: object) -> None:
        pass

    unassign = close = lambda self: None

    def consume(self, count: int, timeout: float) -> list[Message]:
        return [cast(Message, Record(n, {}, bytes(64 << 10))) for _, n in zip(range(count), self.left, strict=False)]


def test_a_reader_has_few_records_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them are 64 MiB."""
    monkeypatch.setattr(topic_reader, "Consumer", cast(type[Consumer], Topic))

    def read() -> int:
        with TopicReader("", "large") as reader:
            return sum(1 for _ in reader.read([Range(0, 0, 1_000)]))

    seen, bytes = peak(read)
    assert seen == 1_000
    assert bytes < 16 << 20


@pytest.mark.parametrize("trouble", [TopicUnavailable, NoSuchTopic])
def test_brokers_that_do_not_answer_do_not_pass_for_a_topic_that_holds_nothing(
    trouble: type[TopicUnavailable], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else every row would be reported lost, and be published once more by a refill."""

    class Silent(TopicReader):
        def ranges(self, **_: Any) -> list[Range]:
            raise trouble("no answer")

    monkeypatch.setattr(audit, "TopicReader", Silent)
    with AwaitedRows() as awaited:
        awaited.add(Row(*row) for row in rows(4))
        if trouble is NoSuchTopic:
            assert audit._take_out_arrived(awaited, "127.0.0.1:1", lambda topic: lambda done, total: None) == 0
            assert len(awaited) == 4
        else:
            with pytest.raises(TopicUnavailable):
                audit._take_out_arrived(awaited, "127.0.0.1:1", lambda topic: lambda done, total: None)
