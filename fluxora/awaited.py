"""Rows of an outbox that have not been found in their topics: on disk, because there is no limit to how many there are.

SQLite makes a file in the folder that ``SQLITE_TMPDIR`` or ``TMPDIR`` names, without a name of its own: it is gone with
the process, however that ends. In memory is a page cache of a few megabytes.
"""

import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Self
from uuid import UUID

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Row:
    """What there is to know of a row without its payload."""

    id: UUID
    topic: str
    key: str
    type: str
    created_at: datetime


class AwaitedRows:
    """Use as a context manager; not for concurrent use."""

    def __init__(self) -> None:
        # The empty name is a temporary file; there is nothing in it that a crash could make worth keeping.
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute("PRAGMA temp_store = FILE")
        self._database.execute(
            "CREATE TABLE awaited (id TEXT PRIMARY KEY, topic TEXT, key TEXT, type TEXT, created INTEGER) WITHOUT ROWID"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def __len__(self) -> int:
        return int(self._one("SELECT count(*) FROM awaited"))

    def add(self, rows: Iterable[Row]) -> None:
        self._database.execute("BEGIN")
        self._database.executemany(
            "INSERT INTO awaited VALUES (?, ?, ?, ?, ?)",
            ((str(row.id), row.topic, row.key, row.type, _micros(row.created_at)) for row in rows),
        )
        self._database.execute("COMMIT")

    def topics(self) -> list[tuple[str, datetime]]:
        """The topics of the rows that are left, each with its oldest row's time."""
        found = self._database.execute("SELECT topic, min(created) FROM awaited GROUP BY topic ORDER BY topic")
        return [(topic, _time(created)) for topic, created in found]

    def any_of(self, topic: str) -> bool:
        return bool(self._one("SELECT EXISTS (SELECT 1 FROM awaited WHERE topic = ?)", topic))

    def arrived(self, topic: str, ids: Iterable[str]) -> None:
        """These are in the topic: they are awaited no longer."""
        self._database.execute("BEGIN")
        self._database.executemany("DELETE FROM awaited WHERE id = ? AND topic = ?", ((id, topic) for id in ids))
        self._database.execute("COMMIT")

    def leave_out(self, topic: str, before: datetime) -> int:
        """Forget the topic's rows that are older; returns how many there were."""
        done = self._database.execute("DELETE FROM awaited WHERE topic = ? AND created < ?", (topic, _micros(before)))
        return done.rowcount

    def oldest(self) -> datetime | None:
        created = self._one("SELECT min(created) FROM awaited")
        return None if created is None else _time(created)

    def ordered(self, limit: int | None = None) -> Iterator[Row]:
        """Yield rows, at most ``limit``, the oldest first."""
        found = self._database.execute(
            "SELECT id, topic, key, type, created FROM awaited ORDER BY created, id LIMIT ?",
            (-1 if limit is None else limit,),
        )
        for id, topic, key, type, created in found:
            yield Row(UUID(id), topic, key, type, _time(created))

    def _one(self, statement: str, *values: str) -> Any:
        return self._database.execute(statement, values).fetchone()[0]


def _micros(at: datetime) -> int:
    return (at - _EPOCH) // _MICROSECOND


def _time(micros: int) -> datetime:
    return _EPOCH + micros * _MICROSECOND
