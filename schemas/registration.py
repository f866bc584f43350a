"""Registration of the platform's schemas, with compatibility enforced."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import httpx2
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from confluent_kafka.schema_registry.error import SchemaRegistryError

from schemas.errors import IncompatibleSchema, InvalidSchema, RegistryUnavailable
from schemas.registry import REGISTRY_TIMEOUT_S

COMPATIBILITY = "BACKWARD"


@dataclass(frozen=True, slots=True)
class Registered:
    """The newest version of a subject."""

    subject: str
    version: int
    schema_id: int


def _load() -> dict[str, dict[str, Any]]:
    loaded = {}
    for entry in sorted(resources.files("schemas").joinpath("avro").iterdir(), key=lambda e: e.name):
        if entry.name.endswith(".avsc"):
            schema = json.loads(entry.read_text(encoding="utf-8"))
            loaded[f"{schema['namespace']}.{schema['name']}"] = schema
    return loaded


#: Every schema of the platform by its full name, which is also its subject
#: (Confluent's RecordNameStrategy: a topic carries several record types).
SCHEMAS: dict[str, dict[str, Any]] = _load()


def full_name(schema: Any) -> str:
    """Return the full name of an Avro record's schema, which is its subject. Raises InvalidSchema if it is none."""
    if not isinstance(schema, Mapping) or schema.get("type") != "record" or not isinstance(schema.get("name"), str):
        raise InvalidSchema('a schema must be an Avro record: {"type": "record", "name": …, "fields": […]}')
    name, namespace = schema["name"], schema.get("namespace")
    return name if "." in name or not namespace else f"{namespace}.{name}"


def register(client: SchemaRegistryClient, subject: str, schema: Mapping[str, Any]) -> int:
    """Register ``schema`` under ``subject`` and return its id.

    BACKWARD compatibility is set on the subject *before* the schema is offered, because Apicurio enforces
    none until told (DESIGN section 3). Idempotent: a schema that is there already keeps its id.

    Raises:
        IncompatibleSchema: readers with the new schema could not read what the old one wrote.
        RegistryUnavailable: the registry does not answer.
    """
    offered = Schema(json.dumps(schema), "AVRO")
    try:
        client.set_compatibility(subject, COMPATIBILITY)
        return int(client.register_schema(subject, offered))
    except SchemaRegistryError as error:
        if error.http_status_code in (409, 422):
            raise IncompatibleSchema(
                f"{subject}: refused by the registry because it breaks {COMPATIBILITY} compatibility with the "
                f"registered version ({error.error_message}). A new field needs a default; a field may not "
                "change its type."
            ) from error
        raise RegistryUnavailable(f"registering {subject}: {error}") from error
    except httpx2.HTTPError as error:
        raise RegistryUnavailable(f"registering {subject}: {error}") from error


def register_types(registry_url: str, types: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Register users' record types, each under its full name; returns their ids by subject.

    Raises:
        InvalidSchema: no Avro record, or the name of one of the platform's.
        IncompatibleSchema, RegistryUnavailable: as ``register``.
    """
    subjects = {full_name(schema): schema for schema in types}
    for subject in subjects:
        if subject in SCHEMAS:
            raise InvalidSchema(f"{subject} is the platform's own; choose another namespace")
    with SchemaRegistryClient({"url": registry_url, "timeout": REGISTRY_TIMEOUT_S}) as client:
        return {subject: register(client, subject, schema) for subject, schema in subjects.items()}


def registered(registry_url: str) -> list[Registered]:
    """Return the newest version of every subject, by name. Raises RegistryUnavailable."""
    try:
        with SchemaRegistryClient({"url": registry_url, "timeout": REGISTRY_TIMEOUT_S}) as client:
            newest = [client.get_latest_version(subject) for subject in sorted(client.get_subjects())]
    except (SchemaRegistryError, httpx2.HTTPError) as error:
        raise RegistryUnavailable(f"listing the registry's schemas: {error!r}") from error
    return [Registered(one.subject or "", one.version or 0, one.schema_id or 0) for one in newest]


def register_all(registry_url: str) -> dict[str, int]:
    """Register every schema of the platform; returns their ids by subject. Errors as in :func:`register`."""
    with SchemaRegistryClient({"url": registry_url}) as client:
        return {subject: register(client, subject, schema) for subject, schema in SCHEMAS.items()}
