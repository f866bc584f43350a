"""What the coordinator reads from its environment: every limit, wait and size, with its bounds."""

from pydantic import AliasChoices, Field
from pydantic_settings import SettingsConfigDict

from participant.outbox import PAYLOAD_LIMIT
from saga_processors.settings import PolicySettings
from web.settings import RestSettings

#: How our connections are named in PostgreSQL's own views.
APPLICATION = "fluxora-coordinator"


class Settings(PolicySettings, RestSettings):
    """Settings of one coordinator process.

    In the environment: ``FLUXORA_COORDINATOR_<NAME>``, but for the addresses ``DATABASE_URL``,
    ``KAFKA_BOOTSTRAP_SERVERS`` and ``SCHEMA_REGISTRY_URL``, and for the policy of two-phase commits, whose names the
    processors share.
    """

    model_config = SettingsConfigDict(env_prefix="FLUXORA_COORDINATOR_", populate_by_name=True, extra="ignore")

    kafka_bootstrap_servers: str = Field(
        validation_alias=AliasChoices("KAFKA_BOOTSTRAP_SERVERS", "kafka_bootstrap_servers"),
        description="host:port of brokers, separated by commas; asked only which services there are.",
    )
    schema_registry_url: str = Field(
        validation_alias=AliasChoices("SCHEMA_REGISTRY_URL", "schema_registry_url"),
        description="Base of the Confluent-compatible API.",
    )
    max_steps: int = Field(default=100, ge=1, le=1000, description="Most steps of a saga.")
    max_payload_bytes: int = Field(
        default=256 << 10, ge=1, le=16 << 20, description="Largest payload of one step or participant, as compact JSON."
    )
    max_record_bytes: int = Field(
        default=PAYLOAD_LIMIT,
        ge=1 << 10,
        le=PAYLOAD_LIMIT,
        description="Largest saga, transaction or request as a Kafka record; a larger one "
        "would stop the connector, so the limit cannot be raised.",
    )
    wait_limit_seconds: float = Field(default=60.0, ge=0, le=3600, description="A longer ?wait= is cut to this.")
    max_waiters: int = Field(default=10_000, ge=1, le=1_000_000, description="Requests that wait at once; then 503.")
    request_wait_seconds: float = Field(
        default=5.0,
        ge=0,
        le=300,
        description="How long a request to a transaction waits for the machine's decision; then 202.",
    )
    max_backlog: int = Field(
        default=20_000,
        ge=1,
        description="Transactions that were written and that no processor has folded; then no further one is begun.",
    )
    backlog_seconds: float = Field(default=1.0, ge=0.05, le=60, description="How often they are counted.")
    services_ttl_seconds: float = Field(
        default=15.0,
        ge=1,
        le=3600,
        description="How often the list of Kafka services is refreshed in the background.",
    )
    services_interval_seconds: float = Field(
        default=0.5,
        ge=0.01,
        le=60,
        description="Least time between two listings, however many unknown names come.",
    )
    kafka_timeout_seconds: float = Field(default=3.0, gt=0, le=60, description="Of one listing.")

    registry_timeout_seconds: float = Field(
        default=5.0, gt=0, le=60, description="Longest wait for the schema registry, which is asked once; then 503."
    )
