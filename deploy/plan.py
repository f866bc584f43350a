"""What is to run: the parts of a stack and its addresses, from the settings and the environment of `up`."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deploy import connect, registry
from deploy.kafka import broker_part
from deploy.parts import Part, Probe, start_order
from deploy.postgres import local_url as postgres_url
from deploy.postgres import postgres_part
from deploy.processes import port_holder
from deploy.readiness import http_answers, kafka_answers, postgres_answers
from deploy.services import extra_parts, our_parts, read_services
from deploy.settings import StackSettings

#: Part of the stack -> the variable that, when set, names one that is already there and is used instead.
EXTERNAL = {
    "postgres": "DATABASE_URL",
    "kafka": "KAFKA_BOOTSTRAP_SERVERS",
    "registry": "SCHEMA_REGISTRY_URL",
    "connect": "CONNECT_URL",
}

#: `stack`: PostgreSQL, Kafka, Connect and the registry without our own services.
Only = Literal["all", "stack"]


@dataclass(frozen=True)
class Plan:
    """The parts in order of start, the addresses (KEY -> value), and which parts are not ours to start."""

    parts: list[Part]
    endpoints: dict[str, str]
    external: dict[str, str]


def make_plan(
    settings: StackSettings, environment: Mapping[str, str], services: Sequence[Path] = (), only: Only = "all"
) -> Plan:
    """Decide what runs. Pure but for reading the service files. Raises `PlanError`."""
    # What `. .run/endpoints.env` has exported are our own addresses: that shell means our own stack by them.
    ours = {
        "postgres": postgres_url(settings.postgres_port),
        "kafka": f"127.0.0.1:{settings.kafka_port}",
        "registry": registry.local_url(settings),
        "connect": connect.local_url(settings),
    }
    external = {
        part: environment[variable]
        for part, variable in EXTERNAL.items()
        if environment.get(variable, "").strip() not in ("", ours[part])
    }
    endpoints = {
        "COORDINATOR_URL": f"http://127.0.0.1:{settings.coordinator_port}",
        "OUTBOX_URL": f"http://127.0.0.1:{settings.outbox_port}",
        "KAFKA_BOOTSTRAP_SERVERS": external.get("kafka", ours["kafka"]),
        "CONNECT_URL": external.get("connect", ours["connect"]),
        "SCHEMA_REGISTRY_URL": external.get("registry", ours["registry"]),
        "DATABASE_URL": external.get("postgres", ours["postgres"]),
    }

    def own(*names: str) -> tuple[str, ...]:
        return tuple(name for name in names if name not in external)

    parts: list[Part] = []
    if "postgres" not in external:
        parts.append(postgres_part(settings))
    if "kafka" not in external:
        parts.append(broker_part(settings))
    if "registry" not in external:
        parts.append(registry.registry_part(settings, endpoints["DATABASE_URL"], own("postgres")))
    if "connect" not in external:
        # It needs no PostgreSQL to start, but must stop before it: its connectors hold replication connections.
        requires = own("kafka", "postgres")
        parts.append(connect.connect_part(settings, endpoints["KAFKA_BOOTSTRAP_SERVERS"], requires))

    shared = {
        **environment,
        **endpoints,
        "FLUXORA_COORDINATOR_HOST": "127.0.0.1",
        "FLUXORA_COORDINATOR_PORT": str(settings.coordinator_port),
        "FLUXORA_OUTBOX_HOST": "127.0.0.1",
        "FLUXORA_OUTBOX_PORT": str(settings.outbox_port),
    }
    ports = itertools.count(settings.health_port)
    ready = own("postgres", "kafka", "registry", "connect")
    if only == "all":
        parts += our_parts(settings, shared, ready, ports)
        ready = ("init",)
    for file in services:
        for spec in read_services(file):
            extra = extra_parts(spec, shared, ready, ports)
            parts += extra
            if (port := extra[-1].ports.get("FLUXORA_HEALTH_PORT")) is not None:
                # Ours come first: a service that is called `database` has no line of its own.
                endpoints.setdefault(url_variable(spec.name), f"http://127.0.0.1:{port}")
    return Plan(start_order(parts), endpoints, external)


def url_variable(service: str) -> str:
    """The line of endpoints.env that says where a further service listens: ``CHECKING_URL``."""
    return re.sub(r"\W", "_", service).upper() + "_URL"


async def unanswered(plan: Plan) -> list[str]:
    """A message for each external part that does not answer."""
    probes: dict[str, Probe] = {}
    for part, address in plan.external.items():
        match part:
            case "postgres":
                probes[part] = postgres_answers(address)
            case "kafka":
                probes[part] = kafka_answers(address)
            case "registry":
                probes[part] = http_answers(f"{address.rstrip('/')}/subjects")
            case _:
                probes[part] = http_answers(f"{address.rstrip('/')}/connectors")
    problems: list[str] = []
    for part, probe in probes.items():
        try:
            reason = None if await probe() else "no answer 200"
        except Exception as error:
            reason = f"{type(error).__name__}: {str(error).strip()}"
        if reason is not None:
            variable = EXTERNAL[part]
            problems.append(
                f"{variable} is set, so that {part} is used instead of one of ours, "
                f"but {masked(plan.external[part])} does not answer ({reason}). Start it, or unset {variable}."
            )
    return problems


def masked(address: str) -> str:
    """The address for the terminal or a log: without its password."""
    return re.sub(r"(://[^:/@]*):[^@/]*@", r"\1:…@", address)


def missing_programs(settings: StackSettings, plan: Plan) -> list[str]:
    """A message for each program or download that a part needs and that is not there."""
    problems: list[str] = []
    ours = {part.name for part in plan.parts}
    if ours & {"kafka", "connect", "registry"} and shutil.which("java") is None:
        problems.append("no `java` on the PATH: install a JDK, version 17 or newer")
    for part, place in (("kafka", "kafka"), ("connect", "plugins/debezium"), ("registry", "registry")):
        if part in ours and not any((settings.jvm_dir / place).glob("*.jar")):
            problems.append(f"{settings.jvm_dir / place} is not there: run `make jvm`")
    if "postgres" in ours and os.geteuid() == 0 and shutil.which("setpriv") is None:
        problems.append("no `setpriv` on the PATH (package util-linux), by which root runs PostgreSQL as another user")
    return problems


def busy_ports(plan: Plan) -> list[str]:
    """A message for each port of the plan that cannot be bound, with its holder and the setting to change."""
    problems: list[str] = []
    for part in plan.parts:
        for variable, port in part.ports.items():
            with socket.socket() as attempt:
                # As servers do it: a connection of an earlier run in TIME_WAIT does not count as busy.
                attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    attempt.bind(("127.0.0.1", port))
                except OSError as error:
                    holder = port_holder(port)
                    problems.append(
                        f"port {port} of {part.name} cannot be used ({error.strerror})"
                        + (f": held by {holder}" if holder else "")
                        + f". Free it, or set {variable} (or FLUXORA_PORT_BASE for all ports)."
                    )
    return problems
