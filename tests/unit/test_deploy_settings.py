"""Ports and settings of the local stack."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from deploy.settings import DEFAULT_PORTS, StackSettings


def test_without_variables_every_port_is_the_documented_one() -> None:
    settings = StackSettings.from_environment({})
    assert {name: settings.port(name) for name in DEFAULT_PORTS} == DEFAULT_PORTS


def test_a_base_moves_every_port_and_keeps_them_within_one_block() -> None:
    settings = StackSettings.from_environment({"FLUXORA_PORT_BASE": "31000"})
    ports = [settings.port(name) for name in DEFAULT_PORTS]
    assert len(set(ports)) == len(ports)
    assert all(31000 <= port < 31100 for port in ports)


def test_a_port_that_is_set_wins_over_the_base() -> None:
    settings = StackSettings.from_environment({"FLUXORA_PORT_BASE": "31000", "FLUXORA_KAFKA_PORT": "9092"})
    assert settings.kafka_port == 9092
    assert settings.postgres_port == 31000


def test_two_parts_on_one_port_are_refused_with_both_names() -> None:
    with pytest.raises(ValidationError, match=r"CONNECT_PORT and FLUXORA_KAFKA_PORT are both 29092"):
        StackSettings.from_environment({"FLUXORA_CONNECT_PORT": "29092"})


@pytest.mark.parametrize(
    ("variable", "value"),
    [("FLUXORA_PORT_BASE", "80"), ("FLUXORA_KAFKA_PORT", "70000"), ("FLUXORA_PROCESSORS", "many")],
)
def test_a_value_that_cannot_be_is_refused(variable: str, value: str) -> None:
    with pytest.raises(ValidationError):
        StackSettings.from_environment({variable: value})


def test_an_empty_variable_and_a_foreign_one_count_as_not_set() -> None:
    settings = StackSettings.from_environment({"FLUXORA_PORT_BASE": "", "FLUXORA_INSTANCE": "coordinator"})
    assert settings == StackSettings()


def test_every_setting_is_documented() -> None:
    assert not [name for name, field in StackSettings.model_fields.items() if not field.description]
