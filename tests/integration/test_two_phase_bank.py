"""The two banks of examples/bank: money that moves, or does not, across two databases."""

import asyncio
import uuid
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import create_engine, text

from examples.bank.accounts import bank
from examples.bank.tables import ACCOUNTS
from participant import migrations
from participant.settings import sqlalchemy_url
from tests.integration.fix_participant import addresses, database_url, fresh_database_url

__all__ = ["addresses", "database_url", "fresh_database_url"]  # fixtures


@pytest.fixture
def banks(database_url: str, fresh_database_url: str) -> Iterator[dict[str, FastAPI]]:
    engines, apps = [], {}
    for name, url in (("checking", database_url), ("savings", fresh_database_url)):
        migrations.upgrade(url)
        engines.append(create_engine(sqlalchemy_url(url)))
        with engines[-1].begin() as connection:
            connection.execute(text(ACCOUNTS))
        apps[name] = bank(name, engines[-1])
    yield apps
    for engine in engines:
        engine.dispose()


def call(app: FastAPI, method: str, path: str, body: Any = None) -> httpx.Response:
    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://bank") as client:
            return await client.request(method, path, json=body)

    return asyncio.run(send())


def payload(t: str, amount: int) -> dict[str, Any]:
    return {"transaction_id": t, "resource_id": "ada", "operation": "update", "data": {"amount": amount}}


def test_a_transfer_commits_in_both_banks_or_in_neither(banks: dict[str, FastAPI]) -> None:
    checking, savings = banks["checking"], banks["savings"]

    def of_ada() -> tuple[int, int]:
        return tuple(call(one, "GET", "/accounts").json()["ada"] for one in (checking, savings))  # type: ignore[return-value]

    t = str(uuid.uuid4())
    assert call(checking, "POST", "/transaction/prepare", payload(t, -3000)).status_code == 200
    assert call(savings, "POST", "/transaction/prepare", payload(t, 3000)).status_code == 200
    assert of_ada() == (7000, 10000), "set aside, not yet given"
    for one in (checking, savings):
        assert call(one, "POST", "/transaction/commit", {"transaction_id": t}).status_code == 200
    assert of_ada() == (7000, 13000)

    u = str(uuid.uuid4())
    assert call(savings, "POST", "/transaction/prepare", payload(u, 8000)).status_code == 200
    no = call(checking, "POST", "/transaction/prepare", payload(u, -8000))
    assert (no.status_code, no.json()["detail"]) == (409, "ada has less than 8000 cents")
    for one in (checking, savings):
        assert call(one, "POST", "/transaction/abort", {"transaction_id": u}).status_code == 200
    assert of_ada() == (7000, 13000)
