"""What happened to a transaction of either kind: its rows of the journal, one for each input, in the log's order."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from coordinator.settings import Settings
from coordinator.views import json_text, time, time_of_ms
from web.database import Connection, Database
from web.paging import next_page, page_limit

# All inputs of a transaction are in one partition: their offsets are their order.
_READ = """
    SELECT "offset", at, input_type, input, outcome, reason, state, effects FROM public.journal
    WHERE transaction_id = %s AND "offset" > %s ORDER BY "offset" LIMIT %s
"""
#: Fields of inputs that hold JSON as text.
_JSON_TEXTS = frozenset({"result", "input", "metadata", "payload"})

Members = Callable[[], Awaitable[Mapping[str, Sequence[str]]]]


class HistoryEntry(BaseModel):
    model_config = ConfigDict(extra="forbid")

    offset: int = Field(description="Its place in the log.")
    at: datetime = Field(description="The log's time.")
    type: str = Field(description="Of the input, such as `fluxora.RequestMade`.")
    input: dict[str, Any] | None = Field(description="What came; of the first only what is not the definition.")
    verdict: Literal["APPLIED", "IGNORED", "REJECTED", "POISON", "PARKED"]
    reason: str | None
    state: str | None = Field(description="The transaction's, after it.")
    effects: list[dict[str, Any]] = Field(description="What left because of it, in order: commands and events.")


class HistoryQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    limit: int | None = Field(default=None, ge=1, description="Entries on a page.")
    cursor: str | None = Field(
        default=None, pattern="^[0-9]{1,18}$", description="`next_cursor` of the page before, unchanged."
    )


class Histories:
    """Reads them."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings = settings
        self._database = database

    async def page(self, path: str, transaction_id: UUID, query: HistoryQuery, members: Members) -> dict[str, Any]:
        """Members ``entries``, ``next`` and ``next_cursor`` of the answer.

        A transaction that has not ended may have more later: behind the last ``next_cursor`` that was not null.

        Args:
            path: of this history, for ``next``.
            members: reads what the journal's effects only number, by the effect's field: ``{"step": [names]}``. Called
                when the journal has been read: a member that is added in between is in it.

        Raises:
            Malformed: the limit is over ``max_page_size``.
            Problem: what ``members`` raises, 404 if there is no such transaction.
        """
        limit = page_limit(query.limit, self._settings.page_size, self._settings.max_page_size)
        after = -1 if query.cursor is None else int(query.cursor)

        async def work(connection: Connection) -> list[dict[str, Any]]:
            return await (await connection.execute(_READ, (transaction_id, after, limit + 1))).fetchall()

        rows = await self._database.run(work)
        named = await members()
        following = str(rows[limit - 1]["offset"]) if len(rows) > limit else None
        return {
            "entries": [_entry(row, named) for row in rows[:limit]],
            "next": next_page(path, query, following),
            "next_cursor": following,
        }


def _entry(row: Mapping[str, Any], members: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    return {
        "offset": row["offset"],
        "at": time(row["at"]),
        "type": row["input_type"],
        "input": None if row["input"] is None else _input(row["input"]),
        "verdict": row["outcome"],
        "reason": row["reason"],
        "state": row["state"],
        "effects": [_effect(effect, members) for effect in row["effects"] or ()],
    }


def _input(told: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers of milliseconds and JSON as text are the record's own way; REST has one for each."""
    shown: dict[str, Any] = {}
    for name, value in told.items():
        if isinstance(value, dict):
            shown[name] = _input(value)
        elif name in _JSON_TEXTS and isinstance(value, str):
            shown[name] = json_text(value)
        elif name.endswith("_at") and isinstance(value, int):
            shown[name] = time_of_ms(value)
        else:
            shown[name] = value
    return shown


def _effect(effect: Mapping[str, Any], members: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """With a member's name in the place of its number; the number stays, where what it numbers cannot be read."""
    return {
        name: members[name][value]
        if name in members and isinstance(value, int) and value < len(members[name])
        else value
        for name, value in effect.items()
    }
