"""Settings of the processors and the clock; environment variables, each with a default and a limit."""

from typing import Annotated

from pydantic import AliasChoices, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from saga_processors.transaction_definition import DEFAULT_POLICY, Policy


class PolicySettings(BaseSettings):
    """How participants of two-phase commits are asked, and how much one may be: ``FLUXORA_<NAME>``.

    Those of the coordinator that accepts a transaction decide, and go with it into the log. A processor's own are for
    first inputs that carry none.
    """

    max_participants: int = Field(
        default=DEFAULT_POLICY.max_participants,
        ge=1,
        le=10_000,
        validation_alias=AliasChoices("FLUXORA_MAX_PARTICIPANTS", "max_participants"),
        description="Participants of a two-phase commit, at most.",
    )
    max_participants_size: int = Field(
        default=DEFAULT_POLICY.max_size,
        ge=1_000,
        le=16 << 20,
        validation_alias=AliasChoices("FLUXORA_MAX_PARTICIPANTS_SIZE", "max_participants_size"),
        description="Characters that the participants of one transaction may be together: they are written with "
        "every change of it.",
    )
    participant_timeout: float = Field(
        default=DEFAULT_POLICY.attempt_timeout_ms / 1000,
        ge=0.1,
        le=3600,
        validation_alias=AliasChoices("FLUXORA_PARTICIPANT_TIMEOUT", "participant_timeout"),
        description="Seconds until one call to prepare, commit or abort counts as unanswered (a Kafka participant's "
        "vote has as long as the transaction).",
    )
    participant_retry_initial: float = Field(
        default=DEFAULT_POLICY.initial_delay_ms / 1000,
        ge=0.01,
        le=3600,
        validation_alias=AliasChoices("FLUXORA_PARTICIPANT_RETRY_INITIAL", "participant_retry_initial"),
        description="Seconds before the second attempt to commit or abort; then it doubles.",
    )
    participant_retry_max: float = Field(
        default=DEFAULT_POLICY.max_delay_ms / 1000,
        ge=0.01,
        le=24 * 3600,
        validation_alias=AliasChoices("FLUXORA_PARTICIPANT_RETRY_MAX", "participant_retry_max"),
        description="Seconds between attempts to commit or abort, at most.",
    )
    participant_attention_after: int = Field(
        default=DEFAULT_POLICY.attention_after,
        ge=1,
        le=1_000,
        validation_alias=AliasChoices("FLUXORA_PARTICIPANT_ATTENTION_AFTER", "participant_attention_after"),
        description="Attempts to commit or abort after which a transaction is shown with needs_attention.",
    )

    @property
    def policy(self) -> Policy:
        """Of the two-phase commits that begin. What one began with stays with it."""
        return Policy(
            attempt_timeout_ms=round(self.participant_timeout * 1000),
            initial_delay_ms=round(self.participant_retry_initial * 1000),
            max_delay_ms=round(self.participant_retry_max * 1000),
            attention_after=self.participant_attention_after,
            max_participants=self.max_participants,
            max_size=self.max_participants_size,
        )


class ProcessorSettings(PolicySettings):
    """Addresses come from the names every process uses; the rest has the prefix ``FLUXORA_``."""

    model_config = SettingsConfigDict(env_prefix="FLUXORA_", extra="ignore", populate_by_name=True)

    database_url: str = Field(validation_alias=AliasChoices("DATABASE_URL", "database_url"))
    kafka_bootstrap_servers: str = Field(
        validation_alias=AliasChoices("KAFKA_BOOTSTRAP_SERVERS", "kafka_bootstrap_servers")
    )
    schema_registry_url: str = Field(validation_alias=AliasChoices("SCHEMA_REGISTRY_URL", "schema_registry_url"))

    #: Name of this process: static group membership, so that a restart within the session timeout keeps its
    #: partitions (KIP-345). Unique among the processors.
    instance: str = "saga-processor-1"
    #: /health, /ready and /metrics; 0 = any free port.
    health_port: Annotated[int, Field(ge=0, le=65535)] = 0
    #: Address of that port; 0.0.0.0 in a container, where probes come from outside.
    health_host: str = "127.0.0.1"
    #: Inputs folded in one database transaction, at most.
    batch_size: Annotated[int, Field(ge=1, le=10_000)] = 1_000
    #: Fetches of one partition (up to 256 KiB each) taken from Faust that wait for the batch before them.
    queue_size: Annotated[int, Field(ge=1, le=10_000)] = 64
    #: Sagas kept in memory between batches, so that they need not be read again.
    cache_size: Annotated[int, Field(ge=0, le=1_000_000)] = 20_000
    #: Steps of a saga, at most. Not below the coordinator's limit: what REST has accepted is never refused here.
    max_steps: Annotated[int, Field(ge=1, le=10_000)] = 1_000
    #: Seconds until the group gives up on a processor that does not answer.
    session_timeout: Annotated[float, Field(ge=1, le=300)] = 6.0
    #: Seconds between looks for inputs that Faust has skipped.
    catch_up_interval: Annotated[float, Field(ge=0.05, le=60)] = 1.0
    #: Seconds a partition with inputs may stand still while Faust delivers those of others.
    stuck_after: Annotated[float, Field(ge=0.5, le=600)] = 15.0
    #: Seconds a batch's effects may wait for the brokers' acknowledgement before the process ends.
    publish_timeout: Annotated[float, Field(ge=1, le=600)] = 30.0
    #: Seconds that a process frozen within a batch keeps its successor waiting: PostgreSQL ends it then.
    transaction_idle_limit: Annotated[float, Field(ge=1, le=600)] = 10.0
    #: Seconds between the clock's looks for deadlines that have passed.
    clock_interval: Annotated[float, Field(ge=0.01, le=60)] = 0.1
    #: Seconds after which the clock produces a deadline again that nobody has folded; then the waits double.
    clock_lease: Annotated[float, Field(ge=1, le=3600)] = 15.0
    #: Seconds between two such productions, at most.
    clock_lease_max: Annotated[float, Field(ge=1, le=24 * 3600)] = 300.0
    #: Deadlines claimed at once.
    clock_batch: Annotated[int, Field(ge=1, le=10_000)] = 500
