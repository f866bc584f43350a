"""docs/asyncapi.yaml: valid AsyncAPI 3.0 in its structure, complete, and what YAML readers get is what was meant."""

import re
from typing import Any

import fastavro
import pytest

from fluxora import asyncapi
from fluxora.topics import PLATFORM
from schemas import SCHEMAS

DOCUMENT = asyncapi.document()


def at(reference: str) -> Any:
    found: Any = DOCUMENT
    assert reference.startswith("#/")
    for part in reference[2:].split("/"):
        found = found[part]
    return found


def references(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if "$ref" in value else []
        return own + [found for inner in value.values() for found in references(inner)]
    return [found for inner in value for found in references(inner)] if isinstance(value, (list, tuple)) else []


def test_the_file_is_what_the_code_says() -> None:
    assert asyncapi.FILE.read_text() == asyncapi.yaml(DOCUMENT)


def test_yaml_readers_get_the_document() -> None:
    yaml = pytest.importorskip("yaml")
    assert yaml.safe_load(asyncapi.yaml(DOCUMENT)) == DOCUMENT
    odd = {"a": [], "b": {}, "c": [[1, [2]], {"d": None}], "e": "x: y # \n é", "true": [True, "true", ""]}
    assert yaml.safe_load(asyncapi.yaml(odd)) == odd


def test_every_topic_has_key_schema_retention_partitions_and_owner() -> None:
    channels = {channel["address"]: channel for channel in DOCUMENT["channels"].values()}
    for topic in PLATFORM:
        channel = channels[topic.name]
        kafka = channel["bindings"]["kafka"]
        assert kafka["partitions"] == topic.partitions
        assert kafka["topicConfiguration"]["retention.ms"] == int(topic.config["retention.ms"])
        assert channel["x-owner"] and channel["x-key"] and channel["messages"]


def test_every_schema_is_a_message_and_every_message_has_a_channel() -> None:
    messages = DOCUMENT["components"]["messages"]
    assert {message["name"] for message in messages.values()} == {*SCHEMAS, "DeadLetter", "Heartbeat"}
    used = {name for channel in DOCUMENT["channels"].values() for name in channel["messages"]}
    assert used == set(messages)
    for message in messages.values():
        if message["name"] in SCHEMAS:
            assert message["payload"]["schemaFormat"].startswith("application/vnd.apache.avro")
            fastavro.parse_schema(message["payload"]["schema"], named_schemas={})


def test_the_structure_is_that_of_asyncapi_3() -> None:
    assert DOCUMENT["asyncapi"] == "3.0.0"
    assert set(DOCUMENT) <= {
        "asyncapi",
        "info",
        "servers",
        "defaultContentType",
        "channels",
        "operations",
        "components",
    }
    assert {"title", "version"} <= set(DOCUMENT["info"])
    for reference in references(DOCUMENT):
        assert at(reference), reference
    for channel in DOCUMENT["channels"].values():
        named = set(re.findall(r"\{(\w+)\}", channel["address"]))
        assert set(channel.get("parameters", {})) == named
    for operation in DOCUMENT["operations"].values():
        assert operation["action"] in ("send", "receive")
        assert operation["channel"]["$ref"].startswith("#/channels/")
    for name in [*DOCUMENT["components"]["messages"], *DOCUMENT["components"]["messageTraits"]]:
        assert re.fullmatch(r"[a-zA-Z0-9.\-_]+", name)


def test_check_tells_a_file_that_is_out_of_date(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(asyncapi, "FILE", tmp_path / "asyncapi.yaml")
    monkeypatch.setattr("sys.argv", ["asyncapi", "--check"])
    assert asyncapi.main() == 1
    monkeypatch.setattr("sys.argv", ["asyncapi"])
    assert asyncapi.main() == 0
    monkeypatch.setattr("sys.argv", ["asyncapi", "--check"])
    assert asyncapi.main() == 0
