"""What the coordinator's OpenAPI document says of itself. Built without connecting to anything."""

import asyncio
from typing import Any

import pytest

from coordinator.app import create_app
from outbox_relay.settings import DirectorySettings
from tests.unit.test_coordinator_submission import CODEC, settings

VERBS = ["sagas/{saga_id}/cancel", "sagas/{saga_id}/retry", "sagas/{saga_id}/skip"] + [
    f"transactions/{{transaction_id}}/{verb}" for verb in ("participants", "prepare", "commit", "abort")
]


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    async def made() -> dict[str, Any]:
        return create_app(settings(), codec=CODEC, topics=list, directory=DirectorySettings()).openapi()

    return asyncio.run(made())


@pytest.mark.parametrize("path", VERBS)
def test_whoever_asks_for_a_decision_may_choose_not_to_wait_for_it(path: str, document: dict[str, Any]) -> None:
    operation = document["paths"][f"/{path}"]["post"]
    headers = {parameter["name"] for parameter in operation["parameters"] if parameter["in"] == "header"}
    assert headers >= {"Idempotency-Key", "Prefer"}
    assert set(operation["responses"]["202"]["headers"]) == {"Location", "Preference-Applied"}
