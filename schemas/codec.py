"""Records to bytes and back: Avro in the Confluent wire format.

The format is a zero byte, the schema's registry id in four bytes (big-endian), then the Avro body
(Confluent documentation, "Wire format"). Any tool with an Avro deserializer reads it.
"""

import io
import json
import struct
from collections.abc import Mapping
from typing import Any

import fastavro
import httpx2
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from confluent_kafka.schema_registry.error import SchemaRegistryError
from fastavro.types import Schema as ParsedSchema

from schemas.errors import RegistryUnavailable, UndecodableRecord, WrongShape
from schemas.registration import SCHEMAS

_HEADER = struct.Struct(">bI")
#: How long one question to the registry may take, in seconds. Each id is asked for once per process.
REGISTRY_TIMEOUT_S = 10


class Codec:
    """Encodes and decodes the platform's records; caches ids and schemas for the life of the process.

    A registry that is down is noticed only when an id is met for the first time.
    Not bound to a thread: the caches are filled idempotently.
    """

    def __init__(self, registry_url: str) -> None:
        self._client = SchemaRegistryClient({"url": registry_url, "timeout": REGISTRY_TIMEOUT_S})
        self._local: dict[str, ParsedSchema] = {
            name: fastavro.parse_schema(schema, named_schemas={}) for name, schema in SCHEMAS.items()
        }
        self._headers: dict[str, bytes] = {}
        self._writers: dict[int, tuple[str, ParsedSchema, ParsedSchema | None]] = {}

    def close(self) -> None:
        """Close the connection to the registry; what is cached still works."""
        self._client.close()

    def encode(self, name: str, record: Mapping[str, Any]) -> bytes:
        """Return ``record`` as the value of a Kafka record.

        Args:
            name: full name of a schema of this package, as ``fluxora.StepReplied``.

        Raises:
            WrongShape: the record does not fit; the message names the field.
            RegistryUnavailable: the schema's id is not cached and the registry does not answer.
        """
        schema = self._local.get(name)
        if schema is None:
            raise WrongShape(f"there is no schema {name!r}; there are {', '.join(sorted(self._local))}")
        header = self._headers.get(name) or self._header(name)
        body = io.BytesIO()
        body.write(header)
        try:
            fastavro.schemaless_writer(body, schema, record, strict_allow_default=True)
        except Exception as error:  # fastavro raises ValueError, TypeError, KeyError and AttributeError
            raise WrongShape(f"{name}: {_describe(schema, record, error)}") from error
        return body.getvalue()

    def decode(self, value: bytes | None) -> tuple[str, dict[str, Any]]:
        """Return the schema's full name and the record.

        A record written with another version of a schema of this package is resolved to the version here.

        Raises:
            UndecodableRecord: not the wire format, an id the registry does not know, or a broken body.
            RegistryUnavailable: the id is met for the first time and the registry does not answer; ask again.
        """
        if value is None or len(value) < _HEADER.size or value[0] != 0:
            raise UndecodableRecord("the value is not in the Confluent wire format (a zero byte and a schema id)")
        _, schema_id = _HEADER.unpack_from(value)
        name, writer, reader = self._writers.get(schema_id) or self._writer(schema_id)
        body = io.BytesIO(value)
        body.seek(_HEADER.size)
        try:
            record = fastavro.schemaless_reader(body, writer, reader)
        except Exception as error:  # whatever broken bytes make of an Avro reader
            raise UndecodableRecord(f"the body is not a {name} of schema id {schema_id}: {error!r}") from error
        if body.tell() != len(value):
            raise UndecodableRecord(f"{len(value) - body.tell()} bytes follow the {name} of schema id {schema_id}")
        if not isinstance(record, dict):
            raise UndecodableRecord(f"schema id {schema_id} is not a record")
        return name, record

    def _header(self, name: str) -> bytes:
        try:
            found = self._client.lookup_schema(name, Schema(json.dumps(SCHEMAS[name]), "AVRO"))
        except SchemaRegistryError as error:
            if error.http_status_code == 404:
                raise RegistryUnavailable(
                    f"the registry does not have this version of {name}; run `fluxora init` to register it"
                ) from error
            raise RegistryUnavailable(f"asking the registry for the id of {name}: {error}") from error
        except httpx2.HTTPError as error:
            raise RegistryUnavailable(f"asking the registry for the id of {name}: {error!r}") from error
        if found.schema_id is None:
            raise RegistryUnavailable(f"the registry gave no id for {name}")
        self._headers[name] = _HEADER.pack(0, found.schema_id)
        return self._headers[name]

    def _writer(self, schema_id: int) -> tuple[str, ParsedSchema, ParsedSchema | None]:
        try:
            found = self._client.get_schema(schema_id)
            text = found.schema_str or ""
        except SchemaRegistryError as error:
            if error.http_status_code == 404:
                raise UndecodableRecord(f"the registry knows no schema with id {schema_id}") from error
            raise RegistryUnavailable(f"asking the registry for schema id {schema_id}: {error}") from error
        except httpx2.HTTPError as error:
            raise RegistryUnavailable(f"asking the registry for schema id {schema_id}: {error!r}") from error
        try:
            raw = json.loads(text)
            writer = fastavro.parse_schema(raw, named_schemas={})
            name = f"{raw['namespace']}.{raw['name']}" if raw.get("namespace") else str(raw["name"])
        except Exception as error:
            raise UndecodableRecord(f"schema id {schema_id} is not an Avro record: {error!r}") from error
        local = self._local.get(name)
        # Resolution costs time on every record; it is only needed when the versions differ.
        reader = local if local is not None and raw != SCHEMAS.get(name) else None
        self._writers[schema_id] = (name, writer, reader)
        return self._writers[schema_id]


def _describe(schema: ParsedSchema, record: Mapping[str, Any], error: Exception) -> str:
    """Name the field that does not fit: fastavro's own write errors do not."""
    try:
        fastavro.validate(record, schema, strict=False)
    except fastavro.validation.ValidationError as told:
        return "; ".join(str(problem) for problem in told.errors)
    assert isinstance(schema, dict)
    unknown = sorted(set(record) - {field["name"] for field in schema["fields"]})
    return f"unknown fields {', '.join(unknown)}" if unknown else repr(error)
