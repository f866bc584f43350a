"""What a stack consists of, given settings, environment and service files."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from deploy.parts import PlanError
from deploy.plan import Plan, busy_ports, make_plan
from deploy.postgres import postgres_part
from deploy.services import fill, read_services
from deploy.settings import StackSettings

OURS = ["init", "coordinator", "outbox-service", "saga-processor-1", "deadline-clock"]
OURS += ["connector-watcher", "http-relay"]


@pytest.fixture
def settings(tmp_path: Path) -> StackSettings:
    registry = tmp_path / "jvm" / "registry"
    registry.mkdir(parents=True)
    (registry / "apicurio-registry-app-0-runner.jar").touch()
    return StackSettings(run_dir=tmp_path / "run", jvm_dir=tmp_path / "jvm", port_base=31000)


def names(plan: Plan) -> list[str]:
    return [part.name for part in plan.parts]


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "services.toml"
    file.write_text(text)
    return file


def test_the_stack_comes_before_init_and_init_before_our_services(settings: StackSettings) -> None:
    plan = make_plan(settings, {})
    assert names(plan) == ["postgres", "kafka", "registry", "connect", *OURS]


def test_only_the_stack_leaves_our_services_out(settings: StackSettings) -> None:
    assert names(make_plan(settings, {}, only="stack")) == ["postgres", "kafka", "registry", "connect"]


def test_an_address_in_the_environment_takes_the_place_of_a_part(settings: StackSettings) -> None:
    plan = make_plan(settings, {"DATABASE_URL": "postgresql://db.example/x", "CONNECT_URL": ""}, only="stack")
    assert names(plan) == ["kafka", "registry", "connect"]
    assert plan.external == {"postgres": "postgresql://db.example/x"}
    assert plan.endpoints["DATABASE_URL"] == "postgresql://db.example/x"


def test_every_process_of_ours_gets_the_addresses_and_a_health_port_of_its_own(tmp_path: Path) -> None:
    settings = StackSettings(run_dir=tmp_path, jvm_dir=tmp_path, port_base=31000, processors=3)
    external = {"DATABASE_URL": "postgresql://db.example/x", "SCHEMA_REGISTRY_URL": "http://registry.example"}
    plan = make_plan(settings, {**external, "SERVICE_REGISTRY_URL": "http://consul.example"})
    services = [part for part in plan.parts if "FLUXORA_HEALTH_PORT" in part.environment]
    assert len({part.environment["FLUXORA_HEALTH_PORT"] for part in services}) == len(services) == 8
    for part in services:
        assert part.environment.items() >= plan.endpoints.items()
        assert part.environment["SERVICE_REGISTRY_URL"] == "http://consul.example"
        assert part.environment["FLUXORA_INSTANCE"] == part.name


def test_a_service_waits_for_its_setup_and_its_setup_for_init(settings: StackSettings, tmp_path: Path) -> None:
    file = write(
        tmp_path,
        """
        [[service]]
        name = "readings"
        setup = [["{python}", "-m", "readings", "{env:DB}"]]
        command = ["{python}", "serve", "{env:FLUXORA_HEALTH_PORT}"]
        env = { DB = "{env:DATABASE_URL}?options={none}" }
        health_port = 31090
        """,
    )
    parts = {part.name: part for part in make_plan(settings, {}, [file]).parts}
    assert parts["readings-setup"].requires == ("init",)
    assert parts["readings"].requires == ("init", "readings-setup")
    database = "postgresql://postgres@127.0.0.1:31000/fluxora?options={none}"
    assert parts["readings-setup"].commands == ((sys.executable, "-m", "readings", database),)
    assert parts["readings"].commands == ((sys.executable, "serve", "31090"),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[service]]\nname = 'a'", r"services.toml: service.0.command: Field required"),
        ("[[service]]\nname = 'a'\ncommand = ['x']\nport = 1", r"service.0.port: Extra inputs"),
        ("[[service]\n", r"services.toml: .*"),
    ],
)
def test_a_faulty_service_file_is_refused_with_file_and_field(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        read_services(write(tmp_path, text))


def test_a_variable_that_is_not_set_is_refused_by_name() -> None:
    with pytest.raises(PlanError, match="NOWHERE is not set"):
        fill("{env:NOWHERE}", {})


def test_a_busy_port_is_told_with_the_setting_to_change(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        part = postgres_part(StackSettings(run_dir=tmp_path, postgres_port=port))
        (message,) = busy_ports(Plan([part], {}, {}))
    assert f"port {port} of postgres" in message
    assert "FLUXORA_POSTGRES_PORT" in message
    assert "held by pid" in message


def test_the_local_stack_lets_addresses_of_this_machine_be_called_unless_told_otherwise(
    settings: StackSettings,
) -> None:
    def allowed(environment: dict[str, str]) -> set[str]:
        parts = make_plan(settings, environment).parts
        return {
            part.environment["FLUXORA_ALLOWED_HOSTS"] for part in parts if part.name in ("http-relay", "coordinator")
        }

    assert allowed({}) == {"127.0.0.0/8,localhost,::1"}
    assert allowed({"FLUXORA_ALLOWED_HOSTS": "orders"}) == {"orders"}


def test_a_further_service_that_listens_has_its_address_among_the_endpoints(
    tmp_path: Path, settings: StackSettings
) -> None:
    file = write(
        tmp_path,
        "[[service]]\nname = 'sub-meters'\ncommand = ['x']\nhealth_port = 4711\n"
        "[[service]]\nname = 'silent'\ncommand = ['x']\n"
        "[[service]]\nname = 'database'\ncommand = ['x']\nhealth_port = 4712\n",
    )
    endpoints = make_plan(settings, {}, [file]).endpoints
    assert endpoints["SUB_METERS_URL"] == "http://127.0.0.1:4711"
    assert "SILENT_URL" not in endpoints
    assert endpoints["DATABASE_URL"].startswith("postgresql://"), "ours is never taken away"
