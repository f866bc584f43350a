"""``fluxora saga check``: what it prints and how it exits."""

import json

import pytest
from typer.testing import CliRunner

from fluxora.cli import app

TARGET = "examples.energy.definitions:settle_day"


def check(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["saga", "check", *arguments])
    return done.exit_code, done.output


def test_a_sound_saga_exits_with_0_and_shows_its_ends() -> None:
    code, told = check(TARGET, "--attempts", "1")
    assert code == 0
    assert "Every way ends, whole or undone." in told
    assert "FAILED, undone: ingest-readings, publish-forecast" in told


def test_a_bound_that_is_hit_is_no_success() -> None:
    code, told = check(TARGET, "--max-states", "20", "--json")
    found = json.loads(told)
    assert code == 1
    assert found["ok"] and not found["complete"] and found["unexplored"] > 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["examples.energy.definitions:nobody"], "has no nobody"),
        ([TARGET, "--input", "{"], "--input is no JSON"),
        ([TARGET, "--input", "{}"], "input"),
    ],
)
def test_what_cannot_be_run_exits_with_1_and_the_reason(arguments: list[str], told: str) -> None:
    code, text = check(*arguments)
    assert code == 1
    assert told in text
