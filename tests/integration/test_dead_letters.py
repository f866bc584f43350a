"""Dead letters are listed, told apart, and sent back."""

import uuid

from confluent_kafka import Producer

from tests.command_line import fluxora
from tests.platform import Platform, steps

DLQ = "fluxora.transactions.dlq"


def bury(platform: Platform, key: str) -> None:
    """An input that no machine understands."""
    producer = Producer({"bootstrap.servers": platform.endpoints["KAFKA_BOOTSTRAP_SERVERS"]})
    producer.produce("fluxora.transactions", b"not avro", key.encode())
    assert producer.flush(30) == 0
    platform.until(lambda: platform.records_of(DLQ, key), "no letter came")


def test_a_letter_says_where_it_came_from_and_why_and_goes_back_there(platform: Platform) -> None:
    key = f"dead-{uuid.uuid4()}"
    bury(platform, key)
    code, told, errors = fluxora(platform, "dlq", "list")
    assert code == 0, errors
    assert {one["topic"]: one["letters"] for one in told}[DLQ] >= 1

    letters = fluxora(platform, "dlq", "show", DLQ, "--limit", "1000")[1]
    [letter] = [one for one in letters if one["key"] == key]
    assert letter["from_topic"] == "fluxora.transactions"
    assert "wire format" in letter["message"]

    place = f"{letter['partition']}:{letter['offset']}-{letter['offset']}"
    assert fluxora(platform, "dlq", "redrive", DLQ, "--offsets", place)[1]["sent"] == 0
    told = fluxora(platform, "dlq", "redrive", DLQ, "--offsets", place, "--send")[1]
    assert (told["letters"], told["sent"]) == (1, 1)
    # As it was, so it is buried a second time.
    platform.until(lambda: len(platform.records_of(DLQ, key)) == 2, "it was not sent back")
    # The two may lie in different partitions, so which comes first in ``records_of`` says nothing.
    records = platform.records_of("fluxora.transactions", key)
    assert [record.value() for record in records] == [b"not avro"] * 2
    [again] = [headers for record in records if (headers := dict(record.headers() or []))]  # type: ignore[arg-type]
    assert again == {"redrive-id": told["redrive_id"].encode()}


def test_a_letter_that_was_handled_meanwhile_does_no_harm(platform: Platform) -> None:
    """A command that comes back after its saga has ended."""
    saga = platform.start(steps({"raise": True}))
    assert platform.wait(saga)["state"] == "FAILED"
    letters = fluxora(platform, "dlq", "show", "alpha.commands.dlq", "--limit", "1000")[1]
    [letter] = [one for one in letters if one["key"] == saga]
    entries = platform.entries([saga])
    place = f"{letter['partition']}:{letter['offset']}-{letter['offset']}"
    assert fluxora(platform, "dlq", "redrive", "alpha.commands.dlq", "--offsets", place, "--send")[1]["sent"] == 1
    after = platform.start(steps({}))
    assert platform.wait(after)["state"] == "COMPLETED"
    assert platform.entries([saga]) == entries


def test_what_is_not_there_is_told(platform: Platform) -> None:
    code, _, errors = fluxora(platform, "dlq", "show", "no.such.dlq")
    assert code == 1
    assert "there is no topic" in errors
    code, _, errors = fluxora(platform, "dlq", "redrive", DLQ, "--offsets", "0:0-99999999", "--send")
    assert code == 1
    assert "does not hold" in errors
