"""Schemas on the real registry: registration is repeatable, and a change that breaks readers is refused."""

import copy
import uuid
from collections.abc import Iterator

import pytest
from confluent_kafka.schema_registry import SchemaRegistryClient

from schemas import SCHEMAS, Codec, IncompatibleSchema, RegistryUnavailable, UndecodableRecord, WrongShape, register_all
from schemas.registration import register
from tests.platform import Platform


@pytest.fixture
def client(platform: Platform) -> Iterator[SchemaRegistryClient]:
    with SchemaRegistryClient({"url": platform.endpoints["SCHEMA_REGISTRY_URL"]}) as client:
        yield client


def test_registering_again_keeps_the_ids_and_compatibility_is_enforced(
    platform: Platform, client: SchemaRegistryClient
) -> None:
    ids = register_all(platform.endpoints["SCHEMA_REGISTRY_URL"])
    assert register_all(platform.endpoints["SCHEMA_REGISTRY_URL"]) == ids
    assert set(ids) == set(SCHEMAS)
    assert {client.get_compatibility(subject) for subject in ids} == {"BACKWARD"}


def test_a_schema_that_breaks_its_readers_is_refused_and_the_words_say_what_to_do(client: SchemaRegistryClient) -> None:
    subject = f"fluxora.Test{uuid.uuid4().hex[:8]}"
    schema = {"type": "record", "name": subject, "fields": [{"name": "a", "type": "string"}]}
    first = register(client, subject, schema)
    with_default = copy.deepcopy(schema)
    with_default["fields"].append({"name": "b", "type": "int", "default": 0})  # type: ignore[attr-defined]
    assert register(client, subject, with_default) != first
    breaking = copy.deepcopy(with_default)
    breaking["fields"].append({"name": "c", "type": "int"})  # type: ignore[attr-defined]
    with pytest.raises(IncompatibleSchema, match="A new field needs a default"):
        register(client, subject, breaking)


def test_a_record_of_the_wrong_shape_is_refused_naming_the_field(platform: Platform) -> None:
    with pytest.raises(WrongShape, match=r"DeadlinePassed\.transaction_id"):
        platform.codec.encode("fluxora.DeadlinePassed", {"transaction_id": 7, "due_at": 1})
    with pytest.raises(WrongShape, match="no schema"):
        platform.codec.encode("fluxora.Nothing", {})


def test_bytes_that_are_no_record_are_told_apart_from_a_registry_that_is_down(platform: Platform) -> None:
    for value in (None, b"", b"\0\0\0", b"{}", b"\0\x7f\xff\xff\xff"):
        with pytest.raises(UndecodableRecord):
            platform.codec.decode(value)
    down = Codec("http://127.0.0.1:1")
    with pytest.raises(RegistryUnavailable):
        down.decode(b"\0\0\0\0\x01abc")
    down.close()
