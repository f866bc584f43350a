"""The Outbox Service as processes on a real PostgreSQL, with real receivers over HTTP."""

import json
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from outbox_relay.messages.models import MessagePage, MessageView
from participant.crashpoint import EXIT_CODE
from tests.http_services import Catalog, catalog
from tests.integration.fix_coordinator import eventually
from tests.integration.fix_messages import (
    Receivers,
    Service,
    messages_database,
    receivers,
    receiving,
    running,
    service,
    sleeping,
)

__all__ = ["messages_database", "receivers", "service"]


def statuses(service: Any, ids: list[str]) -> set[str]:
    return {service.get(id)["status"] for id in ids}


def test_a_message_is_accepted_delivered_and_told(service: Service, receivers: Receivers) -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    destination, receiver = receivers.take()
    body = {
        "destination_service": destination,
        "payload": {"n": 1.5, "t": "ü"},
        "key": "a b%ü",
        "type": "invoice.made",
    }
    answer = service.client.post("/messages", json=body, headers={"traceparent": trace})
    assert (answer.status_code, answer.json()["status"]) == (201, "PENDING")
    id = answer.json()["message_id"]
    assert answer.headers["location"] == f"/messages/{id}"
    told = service.until(id, "DELIVERED")
    MessageView.model_validate_json(json.dumps(told))
    assert told["processed"] and told["processed_at"] and told["retry_count"] == 0
    assert (told["destination_service"], told["payload"]) == (destination, body["payload"])
    [got] = receiver.received
    assert got.body == body["payload"]
    assert got.headers["idempotency-key"] == got.headers["fluxora-message-id"] == id
    assert got.headers["fluxora-message-type"] == "invoice.made"
    assert got.headers["fluxora-message-key"] == "a b%25%C3%BC"
    assert got.headers["traceparent"] == trace


def test_an_idempotency_key_makes_one_message_of_many_requests(service: Service, receivers: Receivers) -> None:
    destination, receiver = receivers.take()
    key = {"Idempotency-Key": str(uuid4())}
    with ThreadPoolExecutor(8) as pool:
        ids = set(pool.map(lambda _: service.post(destination, {"n": 1}, headers=key), range(16)))
    [id] = ids
    service.until(id, "DELIVERED")
    again = service.client.post(
        "/messages", json={"payload": {"n": 1}, "destination_service": destination}, headers=key
    )
    assert again.json() == {"message_id": id, "status": "PENDING"}
    assert again.headers["idempotency-replayed"] == "true"
    other = service.client.post("/messages", json={"payload": 2, "destination_service": destination}, headers=key)
    assert (other.status_code, other.json()["type"]) == (422, "urn:fluxora:problem:idempotency-key-reused")
    assert len(receiver.received) == 1


def test_a_message_with_the_clients_id_is_the_same_message_or_a_conflict(
    service: Service, receivers: Receivers
) -> None:
    destination, _receiver = receivers.take()
    id = str(uuid4())
    assert (
        service.post(destination, {"n": 1}, message_id=id) == service.post(destination, {"n": 1}, message_id=id) == id
    )
    service.until(id, "DELIVERED")
    body = {"destination_service": destination, "payload": {"n": 2}, "message_id": id}
    answer = service.client.post("/messages", json=body)
    assert (answer.status_code, answer.json()["state"]) == (409, "DELIVERED")


def test_bad_requests_are_refused_with_field_and_rule(service: Service) -> None:
    for body, field in (
        ({"payload": 1}, "destination_service"),
        ({"destination_service": "b"}, "payload"),
        ({"destination_service": "no/name", "payload": 1}, "destination_service"),
        ({"destination_service": "fluxora.http", "payload": 1}, "destination_service"),
        ({"destination_service": "b", "payload": 1, "key": ""}, "key"),
        ({"destination_service": "b", "payload": 1, "key": "x" * 256}, "key"),
        ({"destination_service": "b", "payload": 1, "key": "\x00"}, "key"),
        ({"destination_service": "b", "payload": 1, "type": "a b"}, "type"),
        ({"destination_service": "b", "payload": 1, "tpye": "a"}, "tpye"),
        ({"destination_service": "b", "payload": 1, "message_id": "x"}, "message_id"),
    ):
        answer = service.client.post("/messages", json=body)
        assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json"), body
        assert answer.json()["errors"][0]["field"] == field
    large = service.client.post("/messages", json={"destination_service": "b", "payload": "x" * 1_000_000})
    assert (large.status_code, large.json()["errors"][0]["field"]) == (413, "payload")
    huge = service.client.post("/messages", json={"destination_service": "b", "payload": "x" * 2_000_000})
    assert (huge.status_code, huge.json()["errors"][0]["field"]) == (413, "body")
    assert service.client.get(f"/messages/{uuid4()}").status_code == 404
    assert service.client.post(f"/messages/{uuid4()}/redeliver").status_code == 404
    assert service.sql("SELECT count(*) FROM messages.messages WHERE destination IN ('b', 'fluxora.http')") == [(0,)]


def test_messages_of_one_key_arrive_in_order_through_failures_and_two_replicas(messages_database: str) -> None:
    """Each fifth message fails twice before it is taken: nothing of its key may pass it."""

    def answer(body: Any, before: int) -> int:
        return 503 if body["n"] % 5 == 3 and before < 2 else 200

    with (
        receiving(answer) as receiver,
        running(messages_database, {"ordered": receiver.url}) as one,
        running(messages_database, {"ordered": receiver.url}) as two,
    ):
        keys, count = ["a", "b", "c", "d"], 25

        def send(key: str) -> list[str]:
            return [(one, two)[n % 2].post("ordered", {"key": key, "n": n}, key=key) for n in range(count)]

        with ThreadPoolExecutor(len(keys)) as pool:
            ids = [id for sent in pool.map(send, keys) for id in sent]
        eventually(lambda: statuses(one, ids) == {"DELIVERED"})
        for key in keys:
            assert [body["n"] for body in receiver.delivered() if body["key"] == key] == list(range(count))
        failed = [id for id in ids if one.get(id)["retry_count"] == 2]
        assert len(failed) == len(keys) * count / 5


def test_a_dead_and_a_slow_destination_hold_up_nobody_else(messages_database: str) -> None:
    """With a backlog for each, and fewer places for attempts than it has messages."""
    release = threading.Event()

    def held(body: Any, before: int) -> int:
        release.wait(100)
        return 200

    with (
        receiving() as live,
        receiving(held) as slow,
        running(
            messages_database,
            {"live": live.url, "slow": slow.url, "dead": "http://127.0.0.1:9"},
            concurrency=8,
            destination_concurrency=8,
            attempt_timeout_seconds=100,
            lease_seconds=210,
        ) as service,
    ):
        for n in range(40):
            service.post("slow", n)
            service.post("dead", n)
        try:
            for n in range(20):
                service.until(service.post("live", n), "DELIVERED")
            assert slow.received == [], "nothing slow has been answered meanwhile"
        finally:
            release.set()


def test_a_message_that_is_never_taken_fails_is_dead_lettered_and_can_be_sent_again(
    service: Service, receivers: Receivers
) -> None:
    broken = True
    destination, receiver = receivers.take(lambda body, before: 500 if broken and body == "poison" else 200)
    first = service.post(destination, "poison", key="k", type="bad.one")
    second = service.post(destination, "after", key="k")
    told = service.until(first, "FAILED")
    assert (told["retry_count"], told["processed"], told["processed_at"]) == (4, False, None)
    assert "answered 500" in told["last_error"] and told["failed_at"]
    # A failed head lets the next of its key pass.
    service.until(second, "DELIVERED")
    conflict = service.client.post(f"/messages/{second}/redeliver")
    assert (conflict.status_code, conflict.json()["state"]) == (409, "DELIVERED")

    eventually(lambda: service.sql("SELECT letter_due FROM messages.messages WHERE id = %s", first) == [(False,)])
    letter = letter_of(first)
    assert letter.value() == b'"poison"' and letter.key() == b"k"
    headers = dict(letter.headers())
    assert headers["ce_type"] == b"bad.one"
    assert headers["__connect.errors.topic"] == f"{destination}.messages".encode()
    assert b"answered 500" in headers["__connect.errors.exception.message"]

    broken = False
    again = service.client.post(f"/messages/{first}/redeliver")
    assert (again.status_code, again.json()) == (202, {"message_id": first, "status": "PENDING"})
    told = service.until(first, "DELIVERED")
    assert (told["redeliveries"], told["retry_count"]) == (1, 0)
    assert {one.id for one in receiver.received if one.body == "poison"} == {first}


def letter_of(message_id: str) -> Any:
    consumer = Consumer(
        {
            "bootstrap.servers": os.environ["KAFKA_BOOTSTRAP_SERVERS"],
            "group.id": f"letters-{message_id}",
            "auto.offset.reset": "earliest",
        }
    )
    consumer.subscribe(["fluxora.messages.dlq"])
    try:
        until = time.monotonic() + 90
        while time.monotonic() < until:
            record = consumer.poll(1)
            if record and not record.error() and dict(record.headers()).get("ce_id") == message_id.encode():
                return record
    finally:
        consumer.close()
    raise AssertionError("no dead letter")


def test_a_process_killed_in_mid_delivery_leaves_nothing_lost_and_the_order_kept(messages_database: str) -> None:
    """Killed once before it sends and once after the receiver has answered, before that is written down."""
    with receiving() as receiver:
        services = {"kept": receiver.url}
        ids: list[str] = []
        for point in ("messages.before_attempt", "messages.after_attempt"):
            with running(messages_database, services, environment={"FLUXORA_CRASH_AT": f"{point}:4"}) as doomed:
                for n in range(len(ids), len(ids) + 8):
                    try:
                        ids.append(doomed.post("kept", n, key="one", message_id=str(uuid4())))
                    except Exception:
                        break  # it was killed before the answer
                assert doomed.process.wait(60) == EXIT_CODE
        with running(messages_database, services) as service:
            written = [
                str(id)
                for (id,) in service.sql("SELECT id FROM messages.messages WHERE routed_to = 'kept' ORDER BY position")
            ]
            assert set(ids) <= set(written)
            eventually(lambda: statuses(service, written) == {"DELIVERED"})
            came = [one.id for one in receiver.received]
            assert list(dict.fromkeys(came)) == written
            # The one that was answered and not written down came a second time, with the same id.
            assert len(came) == len(written) + 1


def test_a_zombie_cannot_overwrite_what_its_successor_has_written(messages_database: str) -> None:
    """Stopped while its attempt is under way, past its lease; another process delivers meanwhile."""
    begun, frozen = threading.Event(), threading.Event()

    def slow_at_first(body: Any, before: int) -> int:
        if begun.is_set():
            return 200
        begun.set()
        frozen.wait(60)
        return 500

    with (
        receiving(slow_at_first) as receiver,
        running(messages_database, {"frozen": receiver.url}, attempt_timeout_seconds=5, lease_seconds=7) as zombie,
    ):
        id = zombie.post("frozen", 1)
        assert begun.wait(60)
        os.kill(zombie.process.pid, signal.SIGSTOP)
        frozen.set()
        try:
            with running(messages_database, {"frozen": receiver.url}) as successor:
                successor.until(id, "DELIVERED")
                os.kill(zombie.process.pid, signal.SIGCONT)
                eventually(lambda: 'outcome="LOST"' in zombie.client.get("/metrics").text)
                told = successor.get(id)
                assert (told["status"], told["retry_count"]) == ("DELIVERED", 0)
        finally:
            os.kill(zombie.process.pid, signal.SIGCONT)


def test_an_unknown_destination_is_accepted_and_fails_by_the_policy(service: Service) -> None:
    nobody = f"nobody-{time.time_ns()}"
    told = service.until(service.post(nobody, 1), "FAILED")
    assert f"no way to {nobody}" in told["last_error"]
    assert told["retry_count"] == 4


def test_rules_route_drop_and_reject_and_a_broken_file_keeps_the_old_ones(
    messages_database: str, tmp_path: Path
) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text(
        """
        [[rule]]
        destination = "old"
        action = "route"
        to = "new"
        [[rule]]
        type = "debug.*"
        action = "drop"
        reason = "nobody reads these"
        [[rule]]
        destination = "ledger"
        type = "test.*"
        action = "reject"
        """
    )
    with (
        receiving() as new,
        running(messages_database, {"new": new.url}, environment={"FLUXORA_MESSAGE_RULES": str(rules)}) as service,
    ):
        told = service.until(service.post("old", {"n": 1}, type="debug.x"), "DELIVERED")
        assert (told["destination_service"], told["routed_to"]) == ("old", "new")
        dropped = service.client.post("/messages", json={"destination_service": "new", "payload": 1, "type": "debug.x"})
        assert (dropped.status_code, dropped.json()["status"]) == (201, "FAILED")
        told = service.get(dropped.json()["message_id"])
        assert told["last_error"] == "dropped by rule 2: nobody reads these"
        assert service.sql("SELECT letter_due FROM messages.messages WHERE id = %s", told["message_id"]) == [(False,)]
        body = {"destination_service": "ledger", "payload": 1, "type": "test.a"}
        rejected = service.client.post("/messages", json=body)
        assert (rejected.status_code, rejected.json()["type"]) == (422, "urn:fluxora:problem:refused-by-rule")

        def warnings() -> list[str]:
            return [w for w in service.client.get("/ready").json()["warnings"] if "rules.toml" in w]

        write(rules, '[[rule]]\ntype = "debug.*"\naction = "route"\n')
        eventually(warnings)
        [warning] = warnings()
        assert "rule 1" in warning and "`to`" in warning
        assert "fluxora_outbox_rules_broken 1.0" in service.client.get("/metrics").text
        service.until(service.post("old", 2), "DELIVERED")

        write(rules, "")
        eventually(lambda: not service.client.get("/ready").json()["warnings"])
        again = service.client.post(f"/messages/{told['message_id']}/redeliver")
        assert again.json()["status"] == "PENDING"
        service.until(told["message_id"], "DELIVERED")


def write(rules: Path, text: str) -> None:
    """At once, as an editor does: the service must not see half a file."""
    new = rules.with_suffix(".new")
    new.write_text(text)
    new.replace(rules)


def post(service: Service, key: str, **body: Any) -> tuple[int, Any, str | None]:
    """Status, body and Idempotency-Replayed of a POST with an idempotency key."""
    answer = service.client.post("/messages", json=body, headers={"Idempotency-Key": key})
    return answer.status_code, answer.json(), answer.headers.get("idempotency-replayed")


def test_a_replay_is_answered_as_the_first_was_whatever_the_rules_are_by_then(
    messages_database: str, tmp_path: Path
) -> None:
    """Each of the first rules is turned into each other one; nothing is written, moved or sent a second time."""
    rules = tmp_path / "rules.toml"
    rule = '[[rule]]\ntype = "{}"\naction = "{}"\n'
    rules.write_text(rule.format("dropped", "drop") + rule.format("refused", "reject"))
    environment = {"FLUXORA_MESSAGE_RULES": str(rules)}
    with receiving() as old, receiving() as new:
        services = {"old": old.url, "new": new.url}
        with running(messages_database, services, environment=environment) as service:
            plain = {"destination_service": "old", "payload": 1}
            dropped = plain | {"type": "dropped"}
            refused = plain | {"type": "refused"}
            first = {kind: post(service, kind, **body) for kind, body in (("plain", plain), ("dropped", dropped))}
            assert [answer["status"] for _, answer, _ in first.values()] == ["PENDING", "FAILED"]
            assert post(service, "refused", **refused)[0] == 422
            own = str(uuid4())
            assert service.post("old", 2, message_id=own) == own
            service.until(first["plain"][1]["message_id"], "DELIVERED")
            service.until(own, "DELIVERED")
            rows = "SELECT id, routed_to, status, ended_at, redeliveries FROM messages.messages "
            rows += "WHERE destination <> 'probe' ORDER BY id"
            written = service.sql(rows)

            for action, to in (("route", 'to = "new"'), ("drop", ""), ("reject", "")):
                write(rules, f'[[rule]]\naction = "{action}"\n{to}\n')
                eventually(lambda action=action: decision(service) == action, 30)
                for kind, body in (("plain", plain), ("dropped", dropped)):
                    assert post(service, kind, **body) == (201, first[kind][1], "true"), action
                    other = post(service, kind, **(body | {"payload": 3}))
                    assert (other[0], other[1]["type"]) == (422, "urn:fluxora:problem:idempotency-key-reused")
                again = service.client.post("/messages", json=plain | {"payload": 2, "message_id": own})
                assert (again.status_code, again.json()) == (201, {"message_id": own, "status": "PENDING"}), action
                assert service.sql(rows) == written, action
            # What was refused left nothing behind, so the rules of now decide.
            assert post(service, "refused", **refused)[0] == 422
            write(rules, "")
            eventually(lambda: post(service, "refused", **refused)[0] == 201, 30)
            eventually(lambda: service.sql("SELECT 1 FROM messages.messages WHERE status = 'PENDING'") == [], 60)
        assert {one.body for one in new.received} == {"probe"}
        assert sorted(old.delivered()) == [1, 1, 2]


def decision(service: Service) -> str:
    """What the rules say of a new message now."""
    answer = service.client.post("/messages", json={"destination_service": "probe", "payload": "probe"})
    if answer.status_code == 422:
        return "reject"
    told = service.get(answer.json()["message_id"])
    if (told["last_error"] or "").startswith("dropped"):
        return "drop"
    return "route" if told["routed_to"] == "new" else "deliver"


def test_lists_are_filtered_and_come_in_pages(service: Service, receivers: Receivers) -> None:
    destination, _receiver = receivers.take()
    ids = [service.post(destination, n, type=("even", "odd")[n % 2]) for n in range(7)]
    found, path = [], f"/messages?destination={destination}&limit=3"
    while path:
        page = service.client.get(path).json()
        MessagePage.model_validate_json(json.dumps(page))
        found += [message["message_id"] for message in page["messages"]]
        path = page["next"]
    assert found == ids[::-1]

    def count(**filters: str) -> int:
        return len(service.client.get("/messages", params={"destination": destination, **filters}).json()["messages"])

    assert count(type="odd") == 3
    assert (count(older_than="1h"), count(younger_than="1h")) == (0, 7)
    eventually(lambda: count(status="DELIVERED") == 7)
    assert service.client.get("/messages", params={"status": "GONE"}).status_code == 422


def test_old_messages_and_keys_are_pruned_and_the_rest_stays(service: Service, receivers: Receivers) -> None:
    destination, _receiver = receivers.take()
    keys = [str(uuid4()) for _ in range(5)]
    old = [service.post(destination, n, headers={"Idempotency-Key": key}) for n, key in enumerate(keys)]
    kept = service.post(destination, "kept")
    eventually(lambda: statuses(service, [*old, kept]) == {"DELIVERED"})
    waiting = service.post("nobody-prunes", 1)
    past = "now() - interval '8 days'"
    service.sql(f"UPDATE messages.messages SET ended_at = {past} WHERE id = ANY(%s::uuid[])", old)
    service.sql(f"UPDATE messages.messages SET created_at = {past} WHERE id = %s", waiting)
    service.sql(f"UPDATE messages.idempotency_keys SET created_at = {past} WHERE key = ANY(%s)", keys)
    eventually(lambda: all(service.client.get(f"/messages/{id}").status_code == 404 for id in old))
    eventually(lambda: service.sql("SELECT 1 FROM messages.idempotency_keys WHERE key = ANY(%s)", keys) == [])
    assert service.get(kept)["status"] == "DELIVERED"
    assert service.get(waiting)


def test_a_destination_with_too_many_waiting_messages_is_told_to_wait(service: Service, receivers: Receivers) -> None:
    destination, _ = receivers.take(sleeping(0.5, 500))
    body = {"destination_service": destination, "payload": 1, "key": "one"}
    answers: list[httpx.Response] = []

    def refused() -> bool:
        answers.append(service.client.post("/messages", json=body))
        return answers[-1].status_code == 503

    eventually(refused)
    assert answers[-1].headers["retry-after"] and destination in answers[-1].json()["detail"]
    assert service.client.post("/messages", json=body | {"destination_service": "another"}).status_code == 201


def make_topic(name: str) -> None:
    admin = AdminClient({"bootstrap.servers": os.environ["KAFKA_BOOTSTRAP_SERVERS"]})
    for made in admin.create_topics([NewTopic(name, 1, 1)]).values():
        made.result(30)


def test_who_was_reached_over_http_is_not_there_now_and_never_a_topic_when_the_registry_has_lost_everybody(
    messages_database: str,
) -> None:
    """Its topic for commands is there. Each process is a new one: what it knows comes from the database alone."""
    name = f"webby-{time.time_ns()}"
    make_topic(f"{name}.commands")

    def by_way_of(registry: Catalog, **settings: object) -> AbstractContextManager[Service]:
        environment = {
            "SERVICE_REGISTRY_URL": registry.url,
            "FLUXORA_RELAY_REGISTRY_TTL_S": "0.1",
            "FLUXORA_RELAY_REGISTRY_NEGATIVE_TTL_S": "0.1",
        }
        return running(messages_database, {}, environment=environment, **settings)

    def outbox(service: Service) -> list[tuple[Any, ...]]:
        return service.sql("SELECT id FROM fluxora.outbox WHERE topic = %s", f"{name}.messages")

    with catalog() as registry, receiving(lambda body, before: 500 if body == "refused" else 200) as receiver:
        port = int(receiver.url.rpartition(":")[2])
        registry.say(name, 200, [{"ServiceAddress": "127.0.0.1", "ServicePort": port}])
        with by_way_of(registry) as service:
            # Not even a delivery: an attempt is enough, the receiver may have done its part.
            service.until(service.post(name, "refused"), "FAILED")
        for status in (200, 404):
            registry.say(name, status, [])
            with by_way_of(registry, max_attempts=1000) as service:
                eventually(lambda: not service.client.get("/ready").json()["warnings"])
                ids = [service.post(name, [status, 1], key="k"), service.post(name, [status, 2])]
                for id in ids:
                    eventually(lambda one=id: service.get(one)["retry_count"] > 1)
                    told = service.get(id)
                    assert (told["status"], told["handed_to_kafka_at"]) == ("PENDING", None)
                    assert f"{name} is not there now" in told["last_error"]
                assert outbox(service) == []
                registry.say(name, 200, [{"ServiceAddress": "127.0.0.1", "ServicePort": port}])
                for id in ids:
                    service.until(id, "DELIVERED")
        assert outbox(service) == []
        assert sorted(body for body in receiver.delivered()) == [[200, 1], [200, 2], [404, 1], [404, 2]]

        # A person says that it has moved for good; the next process to find it over HTTP remembers it anew.
        registry.say(name, 200, [])
        service.sql("DELETE FROM messages.http_destinations WHERE name = %s", name)
        with by_way_of(registry) as service:
            moved = service.post(name, "moved")
            eventually(lambda: service.get(moved)["handed_to_kafka_at"])
            assert outbox(service) == [(UUID(moved),)]


def test_a_message_that_is_never_there_in_time_fails_and_is_not_put_into_a_topic(service: Service) -> None:
    name = f"gone-{time.time_ns()}"
    make_topic(f"{name}.messages")
    service.sql("INSERT INTO messages.http_destinations (name) VALUES (%s)", name)
    told = service.until(service.post(name, 1), "FAILED")
    assert (told["retry_count"], told["handed_to_kafka_at"]) == (4, None)
    again = service.client.post(f"/messages/{told['message_id']}/redeliver")
    assert again.status_code == 202
    told = service.until(told["message_id"], "FAILED")
    assert f"{name} is not there now" in told["last_error"] and told["handed_to_kafka_at"] is None


def test_an_asked_for_end_finishes_the_attempt_under_way(messages_database: str) -> None:
    begun = threading.Event()

    def slow(body: Any, before: int) -> int:
        begun.set()
        return sleeping(0.6)(body, before)

    with receiving(slow) as receiver:
        with running(messages_database, {"last": receiver.url}) as service:
            id = service.post("last", 1)
            assert begun.wait(60)
        assert len(receiver.received) == 1
        assert service.sql("SELECT status FROM messages.messages WHERE id = %s", id) == [("DELIVERED",)]


def test_a_destination_with_a_topic_only_gets_its_messages_through_the_outbox_in_order(service: Service) -> None:
    """Debezium's part is played by the test; tests/acceptance has the whole way."""
    destination = f"topical-{time.time_ns()}"
    kafka = {"bootstrap.servers": os.environ["KAFKA_BOOTSTRAP_SERVERS"]}
    make_topic(f"{destination}.messages")
    # The first may come before the service has seen the topic, and is then handed over by its first attempt.
    ids = [service.post(destination, n, key="k", type="counted") for n in range(4)]
    eventually(lambda: all(service.get(id)["handed_to_kafka_at"] for id in ids))
    assert statuses(service, ids) == {"PENDING"}
    rows = service.sql(
        "SELECT id::text, topic, aggregateid, payload, type, content_type FROM fluxora.outbox "
        "WHERE topic = %s ORDER BY created_at",
        f"{destination}.messages",
    )
    assert [row[0] for row in rows] == ids
    assert rows[1][1:] == (f"{destination}.messages", "k", b"1", "counted", "application/json")
    producer = Producer(kafka)
    for id, topic, key, payload, *_ in rows[:2]:
        producer.produce(topic, payload, key, headers={"ce_id": id})
    producer.produce(f"{destination}.messages", b"another's", headers={"ce_id": "no id"})
    assert producer.flush(30) == 0
    told = service.until(ids[1], "DELIVERED")
    assert told["processed_at"] and told["retry_count"] == 0
    assert [service.get(id)["status"] for id in ids] == ["DELIVERED", "DELIVERED", "PENDING", "PENDING"]
