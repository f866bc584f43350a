"""Reading the world: services' databases, the coordinator's REST and tables, the topics."""

import time
from collections.abc import Iterator
from typing import Any

import httpx
from confluent_kafka import Message

from fluxora.topic_reader import TopicReader, TopicUnavailable, as_bytes, headers_of
from schemas import Codec, UndecodableRecord
from tests.platform import Platform
from tests.services.vaults import ACCOUNTS, BALANCE
from tests.torture.history import Purse
from tests.torture.listener import POST, TOPIC
from tests.torture.world import Consumed, Entry, Fold, Kept, Move, OutboxRow, Poison, Receipt, Stored, World
from tests.transfers import DATABASES, Transfers

LEDGER, VAULTS = "fluxora_ledger", "fluxora_vaults"
#: Databases whose outboxes Debezium reads.
OUTBOXES = ("fluxora", LEDGER)
#: Where commands to two-phase participants go.
COMMANDS = ("fluxora.http.commands", "kafka-rm.commands", "kafka-xa.commands")
#: Only outboxes write there.
OUTBOX_ONLY = {TOPIC, f"{POST}.messages"}

_STORED = """
    SELECT id::text, kind,
        CASE kind WHEN 'saga' THEN name ELSE coalesce((definition ->> 'metadata')::json ->> 'label', '') END,
        state, parked, needs_attention, progress ->> 'reason'
    FROM transactions ORDER BY created_at, id
"""
_OPEN = """
    SELECT
        (SELECT count(*) FROM transactions WHERE state NOT IN ('COMPLETED', 'FAILED', 'COMMITTED', 'ABORTED')),
        (SELECT count(*) FROM messages.messages WHERE status = 'PENDING')
"""


class Observation:
    """Of one stack."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._transfers = Transfers(platform)
        self._endpoints = platform.endpoints

    def purse(self, database: str) -> Purse:
        """The money of one database, now."""
        balance, aside, moved = self._transfers.read(database)
        first = self._first(database)
        return Purse(time.time(), database, first, balance, aside, moved)

    @staticmethod
    def _first(database: str) -> int:
        return len(DATABASES[database]) * len(ACCOUNTS) * BALANCE

    def unsettled(self) -> str | None:
        """What has not come to its end, in words; none when all has."""
        [(transactions, messages)] = self._platform.query("fluxora", _OPEN)
        [(events,)] = self._platform.query(
            LEDGER, "SELECT count(*) FROM orders WHERE label LIKE 'event-%%' AND label NOT IN (SELECT label FROM heard)"
        )
        sagas = [
            label for (label,) in self._platform.query(LEDGER, "SELECT label FROM orders WHERE label LIKE 'saga-%%'")
        ]
        [(known,)] = self._platform.query("fluxora", "SELECT count(*) FROM transactions WHERE name = ANY(%s)", sagas)
        counts = {
            "transactions open": transactions,
            "messages pending": messages,
            "events not heard": events,
            "sagas from outboxes not begun": len(sagas) - known,
        }
        open_ones = [f"{count} {what}" for what, count in counts.items() if count]
        return ", ".join(open_ones) or None

    def world(self, poisons: list[Poison]) -> World:
        """Everything, once nothing changes any more."""
        world = World(poisons=list(poisons), outbox_only=set(OUTBOX_ONLY))
        query = self._platform.query
        shown = self._shown()
        world.stored = [
            Stored(id, kind, label, state, parked, attention, shown.get(id), reason)
            for id, kind, label, state, parked, attention, reason in query("fluxora", _STORED)
        ]
        world.folds = [
            Fold(*row)
            for row in query(
                "fluxora",
                'SELECT transaction_id::text, "offset", outcome, state FROM journal '
                'WHERE transaction_id IS NOT NULL AND state IS NOT NULL ORDER BY partition, "offset"',
            )
        ]
        world.entries = [
            Entry(*row)
            for row in query(
                LEDGER, "SELECT saga::text, step, operation, extract(epoch FROM at)::float8, service FROM entries"
            )
        ] + [
            Entry(*row)
            for row in query(
                VAULTS,
                "SELECT saga::text, step, operation, extract(epoch FROM at)::float8, 'shop' FROM shop_entries",
            )
        ]
        for database in DATABASES:
            world.moves += [Move(*row) for row in query(database, "SELECT transfer::text, vault, amount FROM moves")]
            world.promises += self._promises(database)
        world.promises += [
            f"{database} holds the prepared transaction {gid}"
            for gid, database in query("fluxora", "SELECT gid, database FROM pg_prepared_xacts")
        ]
        world.messages = [
            Kept(*row)
            for row in query(
                "fluxora",
                "SELECT id::text, coalesce(payload ->> 'label', ''), destination, status, last_error "
                "FROM messages.messages",
            )
        ]
        world.receipts = [
            Receipt("shop", id, place) for id, place in query(VAULTS, "SELECT message::text, place FROM shop_received")
        ]
        world.published = {label for (label,) in query(LEDGER, "SELECT label FROM orders")}
        world.consumed = [Consumed(*row) for row in query(LEDGER, "SELECT label, stream, number, place FROM heard")]
        world.rows = [
            OutboxRow(database, *row)
            for database in OUTBOXES
            for row in query(database, "SELECT id::text, topic, type, aggregateid FROM fluxora.outbox")
        ]
        self._read_topics(world)
        return world

    def _promises(self, database: str) -> list[str]:
        prepared = self._platform.query(
            database,
            "SELECT transaction_id, service, prepared_at::text FROM fluxora.prepared WHERE state = 'PREPARED'",
        )
        held = self._platform.query(
            database,
            "SELECT transaction_id, service, resource_id FROM fluxora.held "
            "WHERE (service, transaction_id) NOT IN "
            "(SELECT service, transaction_id FROM fluxora.prepared WHERE state = 'PREPARED')",
        )
        return [f"{service} has {id} prepared since {at}" for id, service, at in prepared] + [
            f"{service} holds {resource} for {id}, which is not prepared" for id, service, resource in held
        ]

    def _shown(self) -> dict[str, str]:
        """The states that REST shows, page by page."""
        shown: dict[str, str] = {}
        with httpx.Client(base_url=self._endpoints["COORDINATOR_URL"], timeout=30, trust_env=False) as client:
            for path, name, id in (("/sagas", "sagas", "saga_id"), ("/transactions", "transactions", "transaction_id")):
                following: str | None = f"{path}?limit=500"
                while following is not None:
                    page = client.get(following).raise_for_status().json()
                    shown |= {one[id]: one["state"] for one in page[name]}
                    following = page["next"]
        return shown

    def _read_topics(self, world: World) -> None:
        codec = Codec(self._endpoints["SCHEMA_REGISTRY_URL"])
        try:
            for topic in sorted({row.topic for row in world.rows} | OUTBOX_ONLY):
                world.topics[topic] = {id for record in self._records(topic) if (id := _id(record))}
            for record in self._records(f"{POST}.messages"):
                world.receipts.append(Receipt(POST, _id(record), record.offset() or 0))
            for topic in COMMANDS:
                for record in self._records(topic):
                    _count(codec, record, world.sent)
        finally:
            codec.close()
        for letters in {one.dead_letters for one in world.poisons}:
            markers = [one.marker for one in world.poisons if one.dead_letters == letters]
            values = [as_bytes(record.value()) or b"" for record in self._records(letters)]
            world.dead[letters] = {marker for marker in markers if any(marker.encode() in value for value in values)}

    def _records(self, topic: str) -> Iterator[Message]:
        with TopicReader(self._endpoints["KAFKA_BOOTSTRAP_SERVERS"], topic) as reader:
            try:
                ranges = reader.ranges()
            except TopicUnavailable:
                return  # nothing was ever sent there
            yield from reader.read(ranges)

    def journal(self, kind: str, id: str) -> list[dict[str, Any]]:
        """The history of a transaction, as REST tells it; empty if it does not."""
        path = "sagas" if kind == "saga" else "transactions"
        try:
            url = f"{self._endpoints['COORDINATOR_URL']}/{path}/{id}/history?limit=200"
            entries: list[dict[str, Any]] = (
                httpx.get(url, timeout=30, trust_env=False).raise_for_status().json()["entries"]
            )
            return entries
        except (httpx.HTTPError, ValueError, KeyError):
            return []


def _id(record: Message) -> str:
    return next((value.decode() for name, value in headers_of(record) if name == "ce_id" and value), "")


def _count(codec: Codec, record: Message, sent: dict[str, set[str]]) -> None:
    try:
        name, command = codec.decode(as_bytes(record.value()))
    except UndecodableRecord:
        return  # poison
    if name in ("fluxora.ParticipantCommand", "fluxora.HttpCommand") and command["operation"] in (
        "PREPARE",
        "COMMIT",
        "ABORT",
    ):
        sent.setdefault(command["transaction_id"], set()).add(command["operation"])
