"""Registration of the platform's schemas, with compatibility enforced."""

import json
from importlib import resources
from typing import Any

import httpx2
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from confluent_kafka.schema_registry.error import SchemaRegistryError

from schemas.errors import IncompatibleSchema, RegistryUnavailable

COMPATIBILITY = "BACKWARD"


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


def register(client: SchemaRegistryClient, subject: str, schema: dict[str, Any]) -> int:
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


def register_all(registry_url: str) -> dict[str, int]:
    """Register every schema of the platform; returns their ids by subject. Errors as in :func:`register`."""
    with SchemaRegistryClient({"url": registry_url}) as client:
        return {subject: register(client, subject, schema) for subject, schema in SCHEMAS.items()}
