"""What the relay, and whoever looks for HTTP services, reads from the environment: each limit, wait and size."""

from typing import Any, Self

import orjson
from pydantic import AliasChoices, Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from outbox_relay.addresses import Address, AddressRefused, AllowList, forbidden, parse_url
from outbox_relay.attempt import AttemptLimits
from outbox_relay.lanes import LaneLimits
from participant.command import RESULT_LIMIT

#: Services in the static map, and instances of one.
MAP_LIMIT, INSTANCE_LIMIT = 10_000, 1_000


class DirectorySettings(BaseSettings):
    """Where HTTP services are found, and which hosts may be called.

    In the environment: ``FLUXORA_RELAY_<NAME>``, but for ``SERVICE_REGISTRY_URL``, ``FLUXORA_SERVICE_MAP`` and
    ``FLUXORA_ALLOWED_HOSTS``.
    """

    model_config = SettingsConfigDict(env_prefix="FLUXORA_RELAY_", populate_by_name=True, extra="ignore")

    service_registry_url: str | None = Field(
        default=None,
        validation_alias=AliasChoices("SERVICE_REGISTRY_URL", "service_registry_url"),
        description="Base of a registry with Consul's catalog API; none: only the map.",
    )
    service_map: str = Field(
        default="{}",
        validation_alias=AliasChoices("FLUXORA_SERVICE_MAP", "service_map"),
        description='JSON object: a service\'s name to its base URL or a list of them, {"orders": "http://host:80"}. '
        "It comes before the registry.",
    )
    allowed_hosts: str = Field(
        default="",
        validation_alias=AliasChoices("FLUXORA_ALLOWED_HOSTS", "allowed_hosts"),
        description="Hosts that a service_url or an absolute endpoint may name: name, name:port, *.suffix, address, "
        "network/bits, separated by commas. Empty: none.",
    )
    registry_timeout_s: float = Field(default=2.0, ge=0.05, le=60, description="Of one question to the registry.")
    registry_ttl_s: float = Field(
        default=5.0, ge=0, le=3600, description="Instances are asked for again after it; then a change is seen."
    )
    registry_negative_ttl_s: float = Field(
        default=1.0, ge=0, le=600, description="The same where the registry knows none, or did not answer."
    )
    registry_patience_s: float = Field(
        default=0.2,
        ge=0,
        le=10,
        description="A call waits so long for fresh instances when it has older ones that it can reach.",
    )
    registry_max_services: int = Field(
        default=10_000, ge=1, le=1_000_000, description="Services kept in memory; least used go first."
    )
    registry_max_bytes: int = Field(default=1 << 20, ge=1 << 10, le=64 << 20, description="Of one answer.")
    registry_connections: int = Field(default=32, ge=1, le=1_000, description="Questions to the registry at once.")

    @field_validator("service_registry_url")
    @classmethod
    def _check_registry(cls, value: str | None) -> str | None:
        if not value:
            return None
        try:
            return parse_url(value).url.rstrip("/")
        except AddressRefused as error:
            raise ValueError(f"SERVICE_REGISTRY_URL: {error}") from None

    @field_validator("service_map")
    @classmethod
    def _check_map(cls, value: str) -> str:
        parse_map(value)
        return value

    @field_validator("allowed_hosts")
    @classmethod
    def _check_hosts(cls, value: str) -> str:
        AllowList.parse(value)
        return value

    @property
    def allow_list(self) -> AllowList:
        return AllowList.parse(self.allowed_hosts)

    @property
    def static_map(self) -> dict[str, tuple[Address, ...]]:
        return parse_map(self.service_map)

    @classmethod
    def from_environment(cls) -> Self:
        """Read the environment; raises pydantic's ValidationError, which names what is wrong."""
        return cls()


def parse_map(text: str) -> dict[str, tuple[Address, ...]]:
    """Read the static map. Raises ValueError that names the service and the rule."""
    try:
        found = orjson.loads(text or "{}")
    except orjson.JSONDecodeError as error:
        raise ValueError(f"FLUXORA_SERVICE_MAP is not JSON: {error}") from None
    if not isinstance(found, dict) or len(found) > MAP_LIMIT:
        raise ValueError(f"FLUXORA_SERVICE_MAP is a JSON object of at most {MAP_LIMIT} services")
    return {name: _addresses(name, value) for name, value in found.items()}


def _addresses(name: str, value: Any) -> tuple[Address, ...]:
    urls = value if isinstance(value, list) else [value]
    if not urls or len(urls) > INSTANCE_LIMIT or not all(isinstance(url, str) for url in urls):
        raise ValueError(f"FLUXORA_SERVICE_MAP: {name!r} is a base URL or a list of 1 to {INSTANCE_LIMIT} of them")
    try:
        addresses = tuple(parse_url(url) for url in urls)
    except AddressRefused as error:
        raise ValueError(f"FLUXORA_SERVICE_MAP: {name!r}: {error}") from None
    for address in addresses:
        if why := forbidden(address.host):
            raise ValueError(f"FLUXORA_SERVICE_MAP: {name!r}: {why}")
        if "?" in address.path:
            raise ValueError(f"FLUXORA_SERVICE_MAP: {name!r}: a base URL has no query (?…)")
    return addresses


class RelaySettings(DirectorySettings):
    """Settings of one relay process; the names of the addresses, the instance and the health port are everyone's."""

    kafka_bootstrap_servers: str = Field(
        validation_alias=AliasChoices("KAFKA_BOOTSTRAP_SERVERS", "kafka_bootstrap_servers"),
        description="host:port of brokers, separated by commas.",
    )
    schema_registry_url: str = Field(
        validation_alias=AliasChoices("SCHEMA_REGISTRY_URL", "schema_registry_url"),
        description="Base of the Confluent-compatible API.",
    )
    instance: str | None = Field(
        default=None,
        validation_alias=AliasChoices("FLUXORA_INSTANCE", "instance"),
        description="Stable name of this process among the relays (Kafka's group.instance.id).",
    )
    health_port: int = Field(
        default=0,
        ge=0,
        le=65535,
        validation_alias=AliasChoices("FLUXORA_HEALTH_PORT", "health_port"),
        description="/health, /ready and /metrics; 0 = any free port.",
    )
    health_host: str = Field(
        default="127.0.0.1",
        validation_alias=AliasChoices("FLUXORA_HEALTH_HOST", "health_host"),
        description="Address of that port; 0.0.0.0 in a container.",
    )

    connect_timeout_s: float = Field(
        default=5.0,
        gt=0,
        le=60,
        description="Of one connection, and of one DNS look-up. Linux sends a lost SYN again after 1 s and 3 s.",
    )
    read_timeout_s: float = Field(default=300.0, gt=0, le=3600, description="Between two bytes of an answer.")
    max_timeout_s: float = Field(default=300.0, gt=0, le=3600, description="Of a whole call, whatever its step says.")
    max_response_bytes: int = Field(
        default=RESULT_LIMIT,
        ge=1 << 10,
        le=RESULT_LIMIT,
        description="Of an answer's body; a larger result would not fit the log's records.",
    )
    keep_alive_s: float = Field(
        default=1.0, ge=0, le=60, description="An idle connection is used again within it: less than servers keep it."
    )
    dns_ttl_s: float = Field(default=5.0, ge=0, le=3600, description="Checked addresses of a name are used so long.")

    service_concurrency: int = Field(
        default=64,
        ge=1,
        le=10_000,
        description="Calls to one service at once, and as many of what was decided beside them.",
    )
    concurrency: int = Field(default=512, ge=2, le=20_000, description="Calls at once.")
    address_opening: int = Field(
        default=16,
        ge=1,
        le=10_000,
        description="Connections to one address being opened at once: more overflow the queue of a service that "
        "accepts slowly, and the calls are lost or late. The others wait for their turn within their own time.",
    )
    service_waiting: int = Field(
        default=1_000, ge=0, le=1_000_000, description="Commands waiting in one of a service's two lanes."
    )
    service_waiting_bytes: int = Field(default=8 << 20, ge=0, le=1 << 30, description="The same in bytes.")
    waiting: int = Field(default=20_000, ge=0, le=1_000_000, description="Commands waiting in all.")
    waiting_bytes: int = Field(default=64 << 20, ge=0, le=4 << 30, description="The same in bytes.")
    window: int = Field(
        default=100_000,
        ge=100,
        le=10_000_000,
        description="Commands of one partition from the lowest unanswered one on: then it pauses. They come again "
        "after a crash.",
    )
    remembered: int = Field(
        default=10_000,
        ge=0,
        le=1_000_000,
        description="Answered commands of one partition whose second copies are known and dropped.",
    )
    takeover_records: int = Field(
        default=1_000_000,
        ge=0,
        le=100_000_000,
        description="Records of the log that are read to learn what a relay before this one has answered. With more, "
        "the commands in question are not called but answered UNKNOWN, and the machine tries again or undoes.",
    )
    takeover_s: float = Field(default=30.0, ge=1, le=240, description="For reading them; then the same.")
    batch_limit: int = Field(default=500, ge=1, le=10_000, description="Commands taken from Kafka at once.")
    commit_interval_s: float = Field(default=0.2, ge=0.01, le=60, description="Between two commits of offsets.")
    reply_timeout_s: float = Field(
        default=30.0, ge=1, le=600, description="For the brokers to acknowledge a reply; then the process ends."
    )
    session_timeout_s: float = Field(
        default=6.0, ge=1, le=300, description="The partitions of a relay that is gone move on after it."
    )
    registry_outage_s: float = Field(
        default=60.0, ge=0, le=240, description="Wait for a schema registry that is away; then the process ends."
    )
    stop_grace_s: float = Field(default=10.0, ge=0, le=600, description="For calls under way when told to stop.")

    @property
    def attempt_limits(self) -> AttemptLimits:
        return AttemptLimits(
            connect_s=self.connect_timeout_s,
            read_s=self.read_timeout_s,
            response_bytes=self.max_response_bytes,
            keep_alive_s=self.keep_alive_s,
            opening=self.address_opening,
        )

    @property
    def lane_limits(self) -> LaneLimits:
        return LaneLimits(
            running=self.service_concurrency,
            running_total=self.concurrency,
            waiting=self.service_waiting,
            waiting_bytes=self.service_waiting_bytes,
            waiting_total=self.waiting,
            waiting_bytes_total=self.waiting_bytes,
        )
