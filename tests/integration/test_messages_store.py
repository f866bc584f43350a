"""What the Outbox Service's SQL does when two of its transactions meet, on a real PostgreSQL."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime
from uuid import UUID

import psycopg
import pytest
from uuid_utils.compat import uuid7

from outbox_relay.messages import destinations, migrations
from outbox_relay.messages.acceptance import Acceptance, Answered, KeyReused, Posted
from outbox_relay.messages.settings import MessageSettings
from outbox_relay.messages.store import Outcome, Settlement, Status, Store
from tests.integration.fix_coordinator import eventually
from tests.integration.fix_messages import messages_database
from web.database import Database

__all__ = ["messages_database"]

#: Seconds between a slow writer's work and its commit.
SLOW = 4.0


def with_store(database_url: str, work: Callable[[Store, Acceptance], Awaitable[None]]) -> None:
    async def run() -> None:
        database = Database(
            MessageSettings(database_url=database_url, kafka_bootstrap_servers="127.0.0.1:9"), "fluxora-test"
        )
        await database.open()
        try:
            await work(Store(database), Acceptance(database))
        finally:
            await database.close()

    asyncio.run(run())


def slow_commits(database_url: str) -> None:
    """Whoever writes an outbox row commits late: between its commit and others' sight of it, made long enough."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(f"""
            CREATE OR REPLACE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql
                AS $$ BEGIN PERFORM pg_sleep({SLOW}); RETURN NULL; END $$;
            CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON fluxora.outbox
                DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION slow();
        """)


async def one_is_slow(database_url: str) -> None:
    """Wait until somebody has written and has yet to commit."""
    asleep = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'"

    def look() -> None:
        with psycopg.connect(database_url, autocommit=True) as connection:
            eventually(lambda: connection.execute(asleep).fetchone(), 30)

    await asyncio.to_thread(look)


def fast_commits(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("DROP TRIGGER slow ON fluxora.outbox")


def message(*, by_kafka: bool = False, key: str | None = None) -> Posted:
    return Posted(uuid7(), "meters", "meters", key, None, b"{}", None, by_kafka=by_kafka)


async def status_of(store: Store, id: UUID) -> str:
    row = await store.read(id)
    assert row is not None
    return str(row["status"])


def test_a_record_that_overtakes_the_row_of_its_message_confirms_it_all_the_same(messages_database: str) -> None:
    """Logical decoding shows a commit before other sessions do (DESIGN section 1)."""

    async def work(store: Store, acceptance: Acceptance) -> None:
        for key in (None, "a"):
            posted = message(by_kafka=True, key=key)
            writing = asyncio.create_task(acceptance.create(posted, None, None))
            await one_is_slow(messages_database)
            assert not writing.done()
            assert await store.confirm([posted.id, uuid7()]) == 1
            await writing
            assert await status_of(store, posted.id) == Status.DELIVERED

    slow_commits(messages_database)
    try:
        with_store(messages_database, work)
    finally:
        fast_commits(messages_database)


def test_a_record_that_overtakes_the_handing_over_of_its_message_confirms_it_all_the_same(
    messages_database: str,
) -> None:
    async def work(store: Store, acceptance: Acceptance) -> None:
        posted = message(key="b")
        await acceptance.create(posted, None, None)
        [claimed] = [one for one in await store.claim({}, 10, 10, 15.0) if one.id == posted.id]
        handing = asyncio.create_task(store.settle([Settlement(claimed, Outcome.HANDED)]))
        await one_is_slow(messages_database)
        assert not handing.done()
        assert await store.confirm([posted.id]) == 1
        assert await handing == {posted.id}
        assert await status_of(store, posted.id) == Status.DELIVERED

    slow_commits(messages_database)
    try:
        with_store(messages_database, work)
    finally:
        fast_commits(messages_database)


def test_who_was_reached_over_http_meanwhile_is_not_handed_to_a_topic(messages_database: str) -> None:
    """The replica that decided was paused; another one has met the first instance since."""

    async def work(store: Store, acceptance: Acceptance) -> None:
        posted = replace(message(), routed_to="late-to-http")
        await acceptance.create(posted, None, None)
        [claimed] = [one for one in await store.claim({}, 10, 10, 15.0) if one.id == posted.id]
        with psycopg.connect(messages_database, autocommit=True) as connection:
            connection.execute("INSERT INTO messages.http_destinations (name) VALUES ('late-to-http')")
        assert await store.settle([Settlement(claimed, Outcome.HANDED)]) == {posted.id}
        row = await store.read(posted.id)
        assert row is not None and (row["status"], row["retry_count"], row["handed_at"]) == ("PENDING", 0, None)
        assert [one.id for one in await store.claim({}, 10, 10, 15.0) if one.id == posted.id] == [posted.id]
        with psycopg.connect(messages_database) as connection:
            found = connection.execute("SELECT count(*) FROM fluxora.outbox WHERE id = %s", (posted.id,)).fetchone()
        assert found == (0,)

    with_store(messages_database, work)


def test_a_name_is_written_again_when_a_person_may_have_deleted_it(
    messages_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(store: Store, acceptance: Acceptance) -> None:
        monkeypatch.setattr(destinations, "_WRITTEN_S", 0.0)
        used = destinations.HttpDestinations(store._database)
        await used.remember("comes-back")
        with psycopg.connect(messages_database, autocommit=True) as connection:
            connection.execute("DELETE FROM messages.http_destinations WHERE name = 'comes-back'")
        await used.remember("comes-back")
        assert await used.has("comes-back")

    with_store(messages_database, work)


def test_records_of_others_and_second_copies_confirm_nothing(messages_database: str) -> None:
    async def work(store: Store, acceptance: Acceptance) -> None:
        posted, waiting = message(by_kafka=True), message(key="c")
        await acceptance.create(posted, None, None)
        await acceptance.create(waiting, None, None)
        assert await store.confirm([posted.id, waiting.id, uuid7()]) == 1
        assert await store.confirm([posted.id, posted.id]) == 0
        assert await status_of(store, waiting.id) == Status.PENDING

    with_store(messages_database, work)


def test_a_letter_that_left_does_not_stand_for_that_of_a_later_failure(messages_database: str) -> None:
    async def work(store: Store, acceptance: Acceptance) -> None:
        posted = message(key="d")
        await acceptance.create(posted, None, None)

        async def fail() -> None:
            claimed = [one for one in await store.claim({}, 10, 10, 15.0) if one.id == posted.id]
            await store.settle([Settlement(one, Outcome.FAILED, "no") for one in claimed])

        async def letters() -> list[tuple[UUID, datetime]]:
            return [(one["id"], one["ended_at"]) for one in await store.letters(10) if one["id"] == posted.id]

        await fail()
        first = await letters()
        # While it is on its way, the message is sent again and fails again.
        await store.redeliver(posted.id, posted.routed_to, posted.key, None)
        await fail()
        await store.letters_left(first)
        second = await letters()
        assert second and second != first
        await store.letters_left(second)
        assert await letters() == []

    with_store(messages_database, work)


def test_a_replay_that_would_be_refused_waits_for_the_first_that_is_under_way(messages_database: str) -> None:
    """A rule that comes between the two must not answer "refused" for what is being accepted."""

    async def work(store: Store, acceptance: Acceptance) -> None:
        posted = message(by_kafka=True)
        writing = asyncio.create_task(acceptance.create(posted, "one", b"digest"))
        await one_is_slow(messages_database)
        assert not writing.done()
        later = await acceptance.answered(message(), "one", b"digest")
        assert later == Answered((await writing).message_id, Status.PENDING, replayed=True)
        # Asking writes nothing: a key that nobody took is free afterwards.
        assert await acceptance.answered(message(), "two", b"digest") is None
        assert not (await acceptance.create(message(), "two", b"another")).replayed

    slow_commits(messages_database)
    try:
        with_store(messages_database, work)
    finally:
        fast_commits(messages_database)


def test_a_key_stands_for_one_body_also_with_a_message_id_of_the_clients_own(messages_database: str) -> None:
    async def work(store: Store, acceptance: Acceptance) -> None:
        posted = message(key="e")
        other = replace(posted, payload=b"[]")
        assert not (await acceptance.create(posted, "id and key", b"first")).replayed
        assert (await acceptance.create(posted, "id and key", b"first")).replayed
        with pytest.raises(KeyReused):
            await acceptance.create(other, "id and key", b"second")
        # The message came without a key first: the key stands for it from now on.
        bare = message(key="e")
        await acceptance.create(bare, None, None)
        assert (await acceptance.create(bare, "later", b"third")).message_id == bare.id
        with pytest.raises(KeyReused):
            await acceptance.create(message(key="e"), "later", b"fourth")

    with_store(messages_database, work)


def test_an_upgrade_keeps_the_answers_and_the_ways_that_the_old_rows_show(messages_database: str) -> None:
    rows = {
        "over-http": ("DELIVERED", None, 0),
        "over-kafka": ("DELIVERED", "2026-11-23", 0),
        "dropped": ("FAILED", None, 0),
        "given-up": ("FAILED", None, 10),
    }
    with psycopg.connect(messages_database, autocommit=True) as connection:
        connection.execute("DROP SCHEMA messages CASCADE")
        migrations.upgrade(messages_database, "0001")
        for name, (status, handed_at, retries) in rows.items():
            connection.execute(
                """
                WITH written AS (
                    INSERT INTO messages.messages
                        (id, destination, routed_to, payload, status, handed_at, retry_count, created_at, ended_at)
                    VALUES (gen_random_uuid(), %(name)s, %(name)s, '1', %(status)s, %(handed_at)s, %(retries)s,
                            now(), now())
                    RETURNING id
                )
                INSERT INTO messages.idempotency_keys (key, request_digest, message_id)
                SELECT %(name)s, '', id FROM written
                """,
                {"name": name, "status": status, "handed_at": handed_at, "retries": retries},
            )
        migrations.upgrade(messages_database)
        keys = connection.execute("SELECT key, status FROM messages.idempotency_keys").fetchall()
        used = connection.execute("SELECT name FROM messages.http_destinations").fetchall()
    assert dict(keys) == {name: "FAILED" if name == "dropped" else "PENDING" for name in rows}
    assert used == [("over-http",)]
