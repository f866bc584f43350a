"""Our own processes as parts, and further ones from TOML files (`up --services FILE`).

    [[service]]
    name = "readings"
    setup = [["{python}", "-m", "examples.readings", "migrate"]]
    command = ["{python}", "-m", "examples.readings"]
    env = { READINGS_DATABASE = "{env:DATABASE_URL}" }
    health_port = "auto"

`setup` commands run once, in order, when `init` is done; then `command` is supervised. With `health_port` the
service is ready when GET /ready on 127.0.0.1:$FLUXORA_HEALTH_PORT answers 200, otherwise as soon as it runs;
endpoints.env then has READINGS_URL, for services that have more to say on that port than their health.
`requires` names further parts to wait for. In commands and `env`, {python} is the interpreter of this virtual
environment and {env:NAME} a variable as the service gets it.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deploy.parts import Part, PlanError
from deploy.readiness import http_answers
from deploy.settings import PROJECT, StackSettings

#: What a service_url may name where everything runs on one machine; FLUXORA_ALLOWED_HOSTS of `up` takes its place.
LOOPBACK = "127.0.0.0/8,localhost,::1"


class ServiceSpec(BaseModel):
    """One [[service]] of a TOML file."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    command: list[str] = Field(min_length=1)
    setup: list[list[str]] = []
    env: dict[str, str] = {}
    health_port: int | Literal["auto"] | None = None
    requires: list[str] = []


class _ServiceFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    service: list[ServiceSpec]


def read_services(file: Path) -> list[ServiceSpec]:
    """The services of a TOML file. Raises `PlanError` naming the file and the field."""
    try:
        content = _ServiceFile.model_validate(tomllib.loads(file.read_text()))
    except OSError as error:
        raise PlanError(f"{file}: {error.strerror}") from None
    except tomllib.TOMLDecodeError as error:
        raise PlanError(f"{file}: {error}") from None
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(str(step) for step in one['loc'])}: {one['msg']}" for one in error.errors())
        raise PlanError(f"{file}: {problems}") from None
    return content.service


def our_parts(
    settings: StackSettings, environment: Mapping[str, str], requires: tuple[str, ...], ports: Iterator[int]
) -> list[Part]:
    """`init`, then REST (coordinator, Outbox Service), processors, clock, connector watcher and relay, side by side."""
    python = sys.executable

    def service(name: str, module: str) -> Part:
        port = next(ports)
        return Part(
            name=name,
            commands=((python, "-m", module),),
            environment=service_environment(environment, name, port),
            requires=("init",),
            ready=http_answers(f"http://127.0.0.1:{port}/ready"),
            ports={"FLUXORA_HEALTH_PORT": port},
            directory=PROJECT,
        )

    init = Part(
        name="init",
        commands=((python, "-m", "fluxora", "init"),),
        environment=service_environment(environment, "init", None),
        requires=requires,
        one_shot=True,
        directory=PROJECT,
    )
    processors = [
        service(f"saga-processor-{number}", "saga_processors") for number in range(1, settings.processors + 1)
    ]
    clock = service("deadline-clock", "saga_processors.clock")
    watcher = service("connector-watcher", "connectors")
    relay = service("http-relay", "outbox_relay")
    # It answers /ready on its own port.
    coordinator = replace(
        service("coordinator", "coordinator"),
        ready=http_answers(f"http://127.0.0.1:{settings.coordinator_port}/ready"),
        ports={"FLUXORA_COORDINATOR_PORT": settings.coordinator_port},
    )
    outbox = replace(
        service("outbox-service", "outbox_relay.messages"),
        ready=http_answers(f"http://127.0.0.1:{settings.outbox_port}/ready"),
        ports={"FLUXORA_OUTBOX_PORT": settings.outbox_port},
    )
    return [init, coordinator, outbox, *processors, clock, watcher, relay]


def extra_parts(
    spec: ServiceSpec, environment: Mapping[str, str], requires: tuple[str, ...], ports: Iterator[int]
) -> list[Part]:
    """The part of a service, and before it the one-shot part of its setup if it has one."""
    port = next(ports) if spec.health_port == "auto" else spec.health_port
    base = service_environment(environment, spec.name, port)
    own = {**base, **{key: fill(value, base) for key, value in spec.env.items()}}

    def filled(command: Sequence[str]) -> tuple[str, ...]:
        return tuple(fill(word, own) for word in command)

    parts: list[Part] = []
    requires = (*requires, *spec.requires)
    if spec.setup:
        parts.append(
            Part(
                name=f"{spec.name}-setup",
                commands=tuple(filled(command) for command in spec.setup),
                environment=own,
                requires=requires,
                one_shot=True,
                directory=PROJECT,
            )
        )
        requires = (*requires, f"{spec.name}-setup")
    parts.append(
        Part(
            name=spec.name,
            commands=(filled(spec.command),),
            environment=own,
            requires=requires,
            ready=None if port is None else http_answers(f"http://127.0.0.1:{port}/ready"),
            ports={} if port is None else {"FLUXORA_HEALTH_PORT": port},
            directory=PROJECT,
        )
    )
    return parts


def service_environment(environment: Mapping[str, str], name: str, port: int | None) -> dict[str, str]:
    """What every service gets beside the environment of `up`."""
    own = {"FLUXORA_ALLOWED_HOSTS": LOOPBACK, **environment, "FLUXORA_INSTANCE": name, "PYTHONUNBUFFERED": "1"}
    if port is not None:
        own["FLUXORA_HEALTH_PORT"] = str(port)
    return own


def fill(text: str, environment: Mapping[str, str]) -> str:
    """Replace {python} and {env:NAME}; other braces stay. Raises `PlanError` if a variable is not set."""

    def value(match: re.Match[str]) -> str:
        name = match["name"]
        if name is None:
            return sys.executable
        if name not in environment:
            raise PlanError(f"{match[0]} in {text!r}: {name} is not set")
        return environment[name]

    return re.sub(r"\{python\}|\{env:(?P<name>\w+)\}", value, text)
