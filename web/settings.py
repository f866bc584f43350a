"""What every REST process of ours reads from its environment: addresses, limits, waits and sizes."""

from typing import Self

from pydantic import AliasChoices, Field
from pydantic_settings import BaseSettings


class RestSettings(BaseSettings):
    """A subclass names the prefix of its variables; ``DATABASE_URL`` has none."""

    database_url: str = Field(
        validation_alias=AliasChoices("DATABASE_URL", "database_url"),
        description="The coordinator's database, postgresql://user@host:port/name.",
    )
    host: str = Field(default="127.0.0.1", description="Address to listen on; 0.0.0.0 in a container.")
    port: int = Field(default=8000, ge=0, le=65535, description="0 = any free port; the log says which.")

    max_body_bytes: int = Field(default=1 << 20, ge=1 << 10, le=64 << 20, description="Largest request body.")
    body_timeout_seconds: float = Field(default=30.0, gt=0, le=600, description="A slow body is given up after it.")
    max_in_flight: int = Field(
        default=20_000,
        ge=1,
        le=1_000_000,
        description="Requests at once, waiters included; more are answered 503.",
    )

    max_creating: int = Field(
        default=1_500,
        ge=1,
        le=1_000_000,
        description="Things being created at once; more are answered 503, while all else goes on.",
    )
    overload_retry_seconds: int = Field(
        default=2, ge=1, le=3600, description="Retry-After of what is refused because of overload."
    )

    pool_size: int = Field(default=16, ge=1, le=500, description="Connections to PostgreSQL, plus one that listens.")
    pool_wait_seconds: float = Field(default=2.0, gt=0, le=60, description="Longest wait for one of them, then 503.")
    pool_queue: int = Field(default=2_000, ge=1, le=100_000, description="Requests that may wait for one; then 503.")
    statement_timeout_seconds: float = Field(default=5.0, gt=0, le=300, description="Of one statement, then 503.")
    connect_timeout_seconds: int = Field(default=3, ge=2, le=60, description="Of one connection attempt.")
    listen_check_seconds: float = Field(
        default=5.0,
        gt=0,
        le=300,
        description="How often the listening connection is tested when it is silent.",
    )

    page_size: int = Field(default=50, ge=1, le=10_000, description="Entries on a page when ?limit= is not given.")
    max_page_size: int = Field(default=500, ge=1, le=10_000, description="Largest ?limit=.")

    shutdown_seconds: int = Field(
        default=10, ge=1, le=300, description="After SIGTERM, how long running requests may take to end."
    )

    @classmethod
    def from_environment(cls) -> Self:
        """Read the environment; raises pydantic's ValidationError, which names what is missing."""
        return cls()  # the required fields come from the environment
