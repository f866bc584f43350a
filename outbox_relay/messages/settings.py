"""What the Outbox Service reads from its environment."""

from pathlib import Path
from typing import Self

from pydantic import AliasChoices, Field, model_validator
from pydantic_settings import SettingsConfigDict

from participant.outbox import PAYLOAD_LIMIT
from web.settings import RestSettings

#: How our connections are named in PostgreSQL's own views, and our clients in Kafka's.
APPLICATION = "fluxora-outbox-service"
#: Seconds of a lease that are left for writing down how an attempt ended.
_SETTLE_SECONDS = 2.0


class MessageSettings(RestSettings):
    """Settings of one Outbox Service process.

    In the environment: ``FLUXORA_OUTBOX_<NAME>``, but for ``DATABASE_URL``, ``KAFKA_BOOTSTRAP_SERVERS`` and
    ``FLUXORA_MESSAGE_RULES``. Where services are found: ``outbox_relay.settings.DirectorySettings``.
    """

    model_config = SettingsConfigDict(env_prefix="FLUXORA_OUTBOX_", populate_by_name=True, extra="ignore")

    port: int = Field(default=8001, ge=0, le=65535, description="0 = any free port; the log says which.")
    kafka_bootstrap_servers: str = Field(
        validation_alias=AliasChoices("KAFKA_BOOTSTRAP_SERVERS", "kafka_bootstrap_servers"),
        description="host:port of brokers, separated by commas.",
    )
    rules: Path | None = Field(
        default=None,
        validation_alias=AliasChoices("FLUXORA_MESSAGE_RULES", "rules"),
        description="TOML file of routing and filter rules; none: every message goes where it is addressed.",
    )
    rules_interval_seconds: float = Field(
        default=1.0, ge=0.05, le=300, description="How often the file is looked at for a change."
    )

    max_payload_bytes: int = Field(
        default=PAYLOAD_LIMIT,
        ge=1,
        le=PAYLOAD_LIMIT,
        description="Largest payload, as compact JSON; a larger one would stop the connector, so the limit cannot be "
        "raised.",
    )
    max_pending: int = Field(
        default=1_000_000,
        ge=1,
        description="PENDING messages of one destination; then POST is answered 503. Counted every count_seconds.",
    )
    max_backlog: int = Field(
        default=2_000_000, ge=1, description="PENDING messages of all destinations; then POST is answered 503."
    )
    count_seconds: float = Field(default=5.0, ge=0.1, le=600, description="How often PENDING messages are counted.")

    concurrency: int = Field(default=128, ge=2, le=10_000, description="HTTP attempts at once.")
    destination_concurrency: int = Field(
        default=16, ge=1, le=1_000, description="The same for one destination; fewer while it fails."
    )
    poll_seconds: float = Field(
        default=0.5,
        ge=0.02,
        le=60,
        description="How often a process looks for messages that are due and of which nobody has told it: retries, "
        "leases that ended, messages that another replica accepted and is too busy to deliver.",
    )
    attempt_timeout_seconds: float = Field(default=10.0, gt=0, le=600, description="Of one HTTP attempt, in all.")
    lease_seconds: float = Field(
        default=15.0, gt=0, le=3600, description="When a process dies, its attempts are made again after this."
    )
    max_attempts: int = Field(default=10, ge=1, le=10_000, description="Then the message is FAILED.")
    retry_initial_seconds: float = Field(default=0.5, ge=0, le=3600, description="Wait before the second attempt.")
    retry_multiplier: float = Field(default=2.0, ge=1, le=10, description="By which each wait grows.")
    retry_max_seconds: float = Field(default=30.0, ge=0, le=86_400, description="Longest wait, Retry-After included.")
    retry_jitter: float = Field(default=0.2, ge=0, le=1, description="Share of a wait that varies.")

    topics_seconds: float = Field(
        default=5.0, ge=0.1, le=600, description="How often the topics are listed, from which Kafka services are known."
    )
    kafka_timeout_seconds: float = Field(default=5.0, gt=0, le=60, description="Of one listing, or one dead letter.")
    confirm_group: str = Field(
        default="fluxora.outbox-service.confirm",
        min_length=1,
        max_length=249,
        description="Consumer group that confirms; replicas share it, Outbox Services with other databases do not.",
    )
    confirm_refresh_seconds: float = Field(
        default=2.0, ge=0.1, le=600, description="How soon a new <service>.messages topic is read for confirmations."
    )

    delivered_days: float = Field(default=7.0, ge=0, le=3650, description="DELIVERED messages are deleted after this.")
    failed_days: float = Field(default=30.0, ge=0, le=3650, description="FAILED messages are deleted after this.")
    idempotency_days: float = Field(
        default=7.0, ge=0, le=3650, description="Idempotency keys are forgotten after this."
    )
    prune_seconds: float = Field(default=60.0, ge=0.1, le=86_400, description="Pause between two prunings.")
    prune_rows: int = Field(default=1_000, ge=1, le=100_000, description="Rows deleted by one statement.")

    @model_validator(mode="after")
    def _lease_outlives_an_attempt(self) -> Self:
        if self.lease_seconds < self.attempt_timeout_seconds + _SETTLE_SECONDS:
            raise ValueError(
                f"FLUXORA_OUTBOX_LEASE_SECONDS is {self.lease_seconds:g}: it must be {_SETTLE_SECONDS:g} s more than "
                f"FLUXORA_OUTBOX_ATTEMPT_TIMEOUT_SECONDS ({self.attempt_timeout_seconds:g}), or two processes would "
                "attempt a message at once"
            )
        return self

    @property
    def send_within_seconds(self) -> float:
        """An attempt that has not begun so long after its claim is not begun: it could outlive the lease."""
        return self.lease_seconds - self.attempt_timeout_seconds
