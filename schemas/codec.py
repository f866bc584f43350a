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
from fastavro.types import Schema as ParsedSchema

from schemas.errors import InvalidSchema, UndecodableRecord, WrongShape
from schemas.registration import SCHEMAS, full_name
from schemas.registry import ConfluentRegistry, Registry
from schemas.shape import Check, check_of

_HEADER = struct.Struct(">bI")


class Codec:
    """Encodes and decodes the platform's records and those of users; caches ids and schemas as long as it lives.

    A registry that is down is noticed only when an id is met for the first time.
    Not bound to a thread: the caches are filled idempotently.
    """

    def __init__(self, registry: str | Registry) -> None:
        """``registry`` is the base URL of a Confluent-compatible API, or what stands in for one."""
        self._registry = ConfluentRegistry(registry) if isinstance(registry, str) else registry
        self._schemas = dict(SCHEMAS)
        self._local: dict[str, ParsedSchema] = {
            name: fastavro.parse_schema(schema, named_schemas={}) for name, schema in SCHEMAS.items()
        }
        #: Of users' types only: the platform's records are made by the platform.
        self._checks: dict[str, Check] = {}
        #: By identity, because ``add`` is called with every event that is published.
        self._added: dict[int, tuple[str, Mapping[str, Any]]] = {}
        self._headers: dict[str, bytes] = {}
        self._writers: dict[int, tuple[str, ParsedSchema, ParsedSchema | None]] = {}

    def close(self) -> None:
        """Close the connection to the registry; what is cached still works."""
        self._registry.close()

    def add(self, schema: Mapping[str, Any]) -> str:
        """Know a record type of the user's, for ``encode`` and as what ``decode`` resolves to; returns its full name.

        Adding the same schema again does nothing.

        Raises:
            InvalidSchema: no Avro record, or the name is known with another schema: of two versions in one process
                nobody could say which one is meant.
        """
        known = self._added.get(id(schema))
        if known is not None and known[1] is schema:
            return known[0]
        name = full_name(schema)
        if self._schemas.get(name) == schema:
            self._added[id(schema)] = name, schema
            return name
        if name in self._schemas:
            raise InvalidSchema(f"{name} is known with another schema; give one of the two another name")
        try:
            parsed = fastavro.parse_schema(json.loads(json.dumps(schema)), named_schemas={})
            check = check_of(schema)
        except Exception as error:  # fastavro raises whatever a broken schema makes of its parser
            raise InvalidSchema(f"{name} is no valid Avro schema: {error!r}") from error
        self._checks[name] = check
        self._local[name] = parsed
        self._schemas[name] = dict(schema)
        self._added[id(schema)] = name, schema
        # What was met before it was known here is resolved to it from now on.
        self._writers.clear()
        return name

    def prepare(self, name: str) -> None:
        """Ask for the schema's id now, so that ``encode`` needs no registry. Raises RegistryUnavailable, WrongShape."""
        self._known(name)
        if name not in self._headers:
            self._header(name)

    def encode(self, name: str, record: Mapping[str, Any]) -> bytes:
        """Return ``record`` as the value of a Kafka record.

        Args:
            name: full name of a schema of this package, as ``fluxora.StepReplied``, or of one that was added.

        Raises:
            WrongShape: the record does not fit; the message names the field.
            RegistryUnavailable: the schema's id is not cached and the registry does not answer.
        """
        schema = self._known(name)
        check = self._checks.get(name)
        if check is not None and (problem := check(record)) is not None:
            raise WrongShape(f"{name}{problem[0]} {problem[1]}")
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

    def _known(self, name: str) -> ParsedSchema:
        schema = self._local.get(name)
        if schema is None:
            raise WrongShape(f"there is no schema {name!r}; there are {', '.join(sorted(self._local))}")
        return schema

    def _header(self, name: str) -> bytes:
        self._headers[name] = _HEADER.pack(0, self._registry.id_of(name, json.dumps(self._schemas[name])))
        return self._headers[name]

    def _writer(self, schema_id: int) -> tuple[str, ParsedSchema, ParsedSchema | None]:
        text = self._registry.schema_of(schema_id)
        try:
            raw = json.loads(text)
            writer = fastavro.parse_schema(raw, named_schemas={})
            name = full_name(raw)
        except Exception as error:
            raise UndecodableRecord(f"schema id {schema_id} is not an Avro record: {error!r}") from error
        local = self._local.get(name)
        # Resolution costs time on every record; it is only needed when the versions differ.
        reader = local if local is not None and raw != self._schemas.get(name) else None
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
