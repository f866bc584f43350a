"""Settings of the local stack: ports, limits and timeouts, from FLUXORA_* variables.

Ports not given one by one come from FLUXORA_PORT_BASE when that is given (so two stacks run side by side by
setting one number and a run directory), else from `DEFAULT_PORTS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

PROJECT = Path(__file__).resolve().parent.parent

#: Below 32768, where Linux starts to hand out ports to outgoing connections: a stack that is restarting must
#: not lose its port to one of them.
DEFAULT_PORTS = {
    "postgres": 25432,
    "kafka": 29092,
    "kafka_controller": 29093,
    "connect": 28083,
    "registry": 28081,
    "coordinator": 8000,
    "outbox": 8001,
    "health": 8010,
}

#: Distance of each port from FLUXORA_PORT_BASE. `health` is the first of a range that ends the block of 100.
PORT_OFFSETS = {
    "postgres": 0,
    "kafka": 1,
    "kafka_controller": 2,
    "connect": 3,
    "registry": 4,
    "coordinator": 5,
    "outbox": 6,
    "health": 10,
}


class StackSettings(BaseModel):
    """What the stack is started with. Every field is the variable FLUXORA_<FIELD>; times are in seconds.

    Not pydantic-settings' BaseSettings: that mixes this process's own variables into whatever it is given,
    and a test that starts a stack must not inherit the ports of the stack that it was started beside.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    run_dir: Path = Field(default=Path(".run"), description="Data, logs, pids and endpoints of this stack.")
    jvm_dir: Path = Field(default=PROJECT / ".jvm", description="Where `make jvm` put Kafka, Debezium and Apicurio.")

    archive_classes: bool = Field(
        default=True, description="JVMs write their loaded classes to .jvm/archives once, to start faster later."
    )

    batch_scheduling: bool = Field(
        default=True,
        description="Parts that wake up do not interrupt each other while all cores are busy (SCHED_BATCH).",
    )

    port_base: int | None = Field(default=None, ge=1024, le=65000, description="First of the block of ports to use.")
    postgres_port: int = Field(default=0, description="PostgreSQL.")
    kafka_port: int = Field(default=0, description="Kafka's broker.")
    kafka_controller_port: int = Field(default=0, description="Kafka's KRaft controller.")
    connect_port: int = Field(default=0, description="Kafka Connect's REST API.")
    registry_port: int = Field(default=0, description="The schema registry.")
    coordinator_port: int = Field(default=0, description="Our REST API for transactions and sagas.")
    outbox_port: int = Field(default=0, description="Our REST API for messages.")
    health_port: int = Field(default=0, description="First of the health ports of our processes, one each.")

    processors: int = Field(default=1, ge=0, le=12, description="Saga processors to run.")

    postgres_user: str | None = Field(
        default=None,
        description="Who runs PostgreSQL when we are root: by default `postgres`, else `nobody`.",
    )
    kafka_heap: str = Field(default="768m", description="Largest heap of the broker (-Xmx).")
    connect_heap: str = Field(default="768m", description="Largest heap of Kafka Connect (-Xmx).")
    registry_heap: str = Field(default="256m", description="Largest heap of the schema registry (-Xmx).")

    start_timeout: float = Field(default=120, gt=0, description="For one part to become ready, its retries included.")
    start_attempts: int = Field(default=5, ge=1, description="Starts of one part that may fail before `up` gives up.")
    stop_grace: float = Field(default=20, gt=0, description="Between SIGTERM and SIGKILL.")
    restart_first: float = Field(default=0.2, ge=0, description="Before the first restart of a part that died.")
    restart_cap: float = Field(default=5, gt=0, description="Longest wait between two restarts of one part.")
    restart_stable: float = Field(default=30, gt=0, description="Uptime after which a part's restarts count from zero.")
    log_limit_mb: int = Field(default=20, gt=0, description="Logs larger than this are rotated by `up`.")

    @model_validator(mode="before")
    @classmethod
    def _derive_ports(cls, values: dict[str, object]) -> dict[str, object]:
        base = values.get("port_base")
        derived = {
            f"{name}_port": default if base is None else int(str(base)) + PORT_OFFSETS[name]
            for name, default in DEFAULT_PORTS.items()
        }
        return {**derived, **values}

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        holders: dict[int, str] = {}
        for name in DEFAULT_PORTS:
            port = self.port(name)
            if not 0 < port < 65536:
                raise ValueError(f"FLUXORA_{name.upper()}_PORT is {port}: a port is between 1 and 65535")
            if port in holders:
                raise ValueError(
                    f"FLUXORA_{name.upper()}_PORT and FLUXORA_{holders[port].upper()}_PORT are both {port}"
                )
            holders[port] = name
        return self

    def port(self, name: str) -> int:
        """The port of a name in `DEFAULT_PORTS`."""
        port: int = getattr(self, f"{name}_port")
        return port

    @property
    def root(self) -> Path:
        """The run directory, absolute: what marks the processes of this stack as ours."""
        return self.run_dir.absolute()

    @property
    def log_dir(self) -> Path:
        return self.root / "log"

    @property
    def pid_dir(self) -> Path:
        return self.root / "pids"

    def log_file(self, part: str) -> Path:
        return self.log_dir / f"{part}.log"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """The settings that these variables give; empty ones count as not set. Raises `ValidationError`."""
        names = {f"FLUXORA_{field.upper()}": field for field in cls.model_fields}
        return cls.model_validate({field: environment[key] for key, field in names.items() if environment.get(key)})
