"""A message from the POST to its receiver, over HTTP and over Kafka, through the whole stack."""

import time

import pytest
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from participant.outbox_client import OutboxClient
from tests.integration.fix_messages import receiving, running
from tests.platform import Platform


def test_a_message_to_a_service_with_a_topic_arrives_and_is_told_delivered(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    destination = f"listener-{time.time_ns()}"
    admin = AdminClient({"bootstrap.servers": platform.endpoints["KAFKA_BOOTSTRAP_SERVERS"]})
    for made in admin.create_topics([NewTopic(f"{destination}.commands", 1, 1)]).values():
        made.result(30)
    monkeypatch.setenv("OUTBOX_URL", platform.endpoints["OUTBOX_URL"])
    with OutboxClient("web-shop") as outbox:
        sent = [outbox.send_message(destination, {"n": n}, key="one", type="counted").message_id for n in range(5)]
        assert [outbox.wait(id)["status"] for id in sent] == ["DELIVERED"] * 5
    records = platform.records_of(f"{destination}.messages", "one")
    assert [dict(record.headers())["ce_id"].decode() for record in records] == sent
    assert records[0].value() == b'{"sender":"web-shop","content":{"n":0}}'


def test_a_message_to_an_http_service_arrives_and_is_told_delivered(platform: Platform) -> None:
    """By a replica of the test's own: which services there are is read when a process starts."""
    with (
        receiving() as receiver,
        running(platform.endpoints["DATABASE_URL"], {"web-listener": receiver.url}) as replica,
        OutboxClient("web-shop", replica.url) as outbox,
    ):
        sent = outbox.send_message("web-listener", {"n": 1}, key="one")
        # Another replica, which does not know the service, may have tried first.
        message = outbox.wait(sent.message_id)
        assert message["status"] == "DELIVERED"
        assert receiver.received[-1].id == sent.message_id
        assert receiver.delivered() == [{"sender": "web-shop", "content": {"n": 1}}]
