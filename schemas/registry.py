"""Where schemas have their ids: a Confluent-compatible registry, or the memory of a test."""

import json
from typing import Protocol

import httpx2
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from confluent_kafka.schema_registry.error import SchemaRegistryError

from schemas.errors import RegistryUnavailable, UndecodableRecord

#: How long one question to the registry may take, in seconds. Each id is asked for once per process.
REGISTRY_TIMEOUT_S = 10


#: Statuses that say nothing about what was asked for: who asks, how often, how slowly.
_NOT_ABOUT_THE_ID = frozenset({401, 403, 407, 408, 429})


class Registry(Protocol):
    """What a codec asks. Every answer is for ever: an id never changes its schema."""

    def id_of(self, name: str, schema: str) -> int:
        """Return the id of exactly this schema under the subject ``name``.

        Raises:
            RegistryUnavailable: it does not answer, or does not have this version.
        """

    def schema_of(self, schema_id: int) -> str:
        """Return the schema's JSON.

        Raises:
            UndecodableRecord: no schema has this id.
            RegistryUnavailable: it does not answer.
        """

    def close(self) -> None:
        """Let go of connections."""


class ConfluentRegistry:
    """A registry with Confluent's API: Confluent's own, Apicurio, Karapace, Redpanda."""

    def __init__(self, url: str) -> None:
        self._client = SchemaRegistryClient({"url": url, "timeout": REGISTRY_TIMEOUT_S})

    def close(self) -> None:
        self._client.close()

    def id_of(self, name: str, schema: str) -> int:
        try:
            found = self._client.lookup_schema(name, Schema(schema, "AVRO"))
        except SchemaRegistryError as error:
            if error.http_status_code == 404:
                raise RegistryUnavailable(
                    f"the registry does not have this version of {name}; register it: `fluxora init` for the "
                    "platform's own, `fluxora schema register` for yours"
                ) from error
            raise RegistryUnavailable(f"asking the registry for the id of {name}: {error}") from error
        except httpx2.HTTPError as error:
            raise RegistryUnavailable(f"asking the registry for the id of {name}: {error!r}") from error
        if found.schema_id is None:
            raise RegistryUnavailable(f"the registry gave no id for {name}")
        return int(found.schema_id)

    def schema_of(self, schema_id: int) -> str:
        try:
            schema = self._client.get_schema(schema_id).schema_str or ""
            json.loads(schema)
            return schema
        except SchemaRegistryError as error:
            # A registry may find an odd id (2^32-1 fits the wire format) malformed rather than unknown. It says so in
            # words of its own: a proxy before a registry that is away answers 404, too, to everything.
            its_own = error.error_code not in (None, -1)
            if its_own and 400 <= error.http_status_code < 500 and error.http_status_code not in _NOT_ABOUT_THE_ID:
                raise UndecodableRecord(f"the registry knows no schema with id {schema_id}") from error
            raise RegistryUnavailable(f"asking the registry for schema id {schema_id}: {error}") from error
        except httpx2.HTTPError as error:
            raise RegistryUnavailable(f"asking the registry for schema id {schema_id}: {error!r}") from error
        except (ValueError, TypeError, AttributeError) as error:  # an answer that is not the API's
            # The client would answer with it for ever.
            self._client.clear_caches()  # type: ignore[no-untyped-call]
            raise RegistryUnavailable(f"the registry's answer for schema id {schema_id} is no schema") from error


class MemoryRegistry:
    """A registry of one process, for tests without a real one: it knows every schema that it is asked about."""

    def __init__(self) -> None:
        self._schemas: list[str] = []

    def close(self) -> None:
        """Nothing is open."""

    def id_of(self, name: str, schema: str) -> int:
        if schema not in self._schemas:
            self._schemas.append(schema)
        return self._schemas.index(schema) + 1

    def schema_of(self, schema_id: int) -> str:
        if not 0 < schema_id <= len(self._schemas):
            raise UndecodableRecord(f"the registry knows no schema with id {schema_id}")
        return self._schemas[schema_id - 1]
