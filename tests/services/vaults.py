"""``python -m tests.services.vaults``: vaults that hold money, one for each way of taking part in two-phase commits.

=============  =========  ============================  ====================================================
vault          called by  participant                   database
=============  =========  ============================  ====================================================
``http-rm``    HTTP       ResourceManager               ``vaults``
``http-xa``    HTTP       PreparedTransactionManager    ``vaults``; one process serves the two, below paths
``kafka-rm``   Kafka      ResourceManager               ``ledger``
``kafka-xa``   Kafka      PreparedTransactionManager    ``ledger``
=============  =========  ============================  ====================================================

A payload is ``{"transfer": "<the transaction's id>", "account": "a1", "amount": -30}``. A commit writes a row of
``moves`` beside the balance; nothing in the tables stops a second one: that there is none is for the library to see
to. So in one database, at every moment, ``sum(balance) + what is set aside = what was there at first + sum(moves)``.
"""

import asyncio
import os
import sys
from collections.abc import Mapping
from typing import Any

import psycopg
import uvicorn
from fastapi import FastAPI
from sqlalchemy import Connection, Engine, create_engine, make_url, text

from deploy.postgres import create_database
from participant import (
    Change,
    PreparedTransactionManager,
    Refused,
    ResourceManager,
    Service,
    add_transaction_endpoints,
    migrations,
)
from participant.settings import sqlalchemy_url

#: Which vaults share a database, by the suffix of its name.
VAULTS = {"vaults": ("http-rm", "http-xa"), "ledger": ("kafka-rm", "kafka-xa")}
ACCOUNTS = tuple(f"a{i}" for i in range(40))
#: Of each account at first.
BALANCE = 10_000

TABLES = """
    CREATE TABLE IF NOT EXISTS accounts (
        vault text, name text, balance bigint NOT NULL CHECK (balance >= 0), PRIMARY KEY (vault, name));
    CREATE TABLE IF NOT EXISTS moves (transfer uuid, vault text, account text, amount bigint);
"""
_ADD = text("UPDATE accounts SET balance = balance + :amount WHERE vault = :vault AND name = :account")
_BALANCE = text("SELECT balance FROM accounts WHERE vault = :vault AND name = :account")
_MOVE = text("INSERT INTO moves VALUES (CAST(:transfer AS uuid), :vault, :account, :amount)")


def resource_manager(vault: str, engine: Engine) -> ResourceManager:
    """What goes out is set aside at prepare; what comes in arrives at commit."""

    def fields(change: Change) -> dict[str, Any]:
        return {"vault": vault, "account": change.resource_id, **change.data}

    def suffices(connection: Connection, change: Change) -> Refused | None:
        balance = connection.execute(_BALANCE, fields(change)).scalar_one_or_none()
        if balance is None:
            return Refused(f"{vault} has no account {change.resource_id}")
        return None if balance + change.data["amount"] >= 0 else Refused(f"{change.resource_id} has only {balance}")

    def set_aside(connection: Connection, change: Change) -> None:
        if change.data["amount"] < 0:
            connection.execute(_ADD, fields(change))

    def arrive(connection: Connection, change: Change) -> None:
        if change.data["amount"] > 0:
            connection.execute(_ADD, fields(change))
        connection.execute(_MOVE, fields(change))

    def give_back(connection: Connection, change: Change) -> None:
        if change.data["amount"] < 0:
            connection.execute(_ADD, {**fields(change), "amount": -change.data["amount"]})

    manager = ResourceManager(engine, service=vault, operations=_operations)
    manager.resource("account", validate=suffices, reserve=set_aside, apply=arrive, release=give_back)
    return manager


def prepared_transaction_manager(vault: str, engine: Engine) -> PreparedTransactionManager:
    """All of it is in the prepared transaction; an overdraft breaks the table's constraint."""

    def move(connection: Connection, payload: Mapping[str, Any]) -> Refused | None:
        fields = {"vault": vault, **payload}
        if not connection.execute(_ADD, fields).rowcount:
            return Refused(f"{vault} has no account {payload['account']}")
        connection.execute(_MOVE, fields)
        return None

    return PreparedTransactionManager(engine, service=vault, work=move, lock_wait_s=0.5)


def _operations(payload: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    data = {"transfer": payload["transfer"], "amount": payload["amount"]}
    return [{"resource_id": payload["account"], "operation": "update", "data": data}]


def http(engine: Engine) -> FastAPI:
    app = FastAPI()
    for manager in (resource_manager("http-rm", engine), prepared_transaction_manager("http-xa", engine)):
        add_transaction_endpoints(
            app,
            manager,
            prepare_path=f"/{manager.service}/transaction/prepare",
            commit_path=f"/{manager.service}/transaction/commit",
            abort_path=f"/{manager.service}/transaction/abort",
        )

    @app.get("/ready")
    def ready() -> dict[str, str]:
        return {"status": "ok"}

    return app


def make_tables(url: str) -> None:
    """The database itself if it is missing, the library's tables and ours. Without a connector: HTTP needs none."""
    given = make_url(url)
    assert given.database is not None
    asyncio.run(create_database(given.set(database="postgres").render_as_string(False), given.database))
    migrations.upgrade(url)
    vaults = next(names for suffix, names in VAULTS.items() if url.endswith(f"_{suffix}"))
    with psycopg.connect(url) as connection:
        connection.execute(TABLES)
        for vault in vaults:
            connection.execute(
                "INSERT INTO accounts SELECT %s, unnest(%s::text[]), %s ON CONFLICT DO NOTHING",
                (vault, list(ACCOUNTS), BALANCE),
            )


def main() -> None:
    what, url = sys.argv[1], os.environ["DATABASE_URL"]
    engine = create_engine(sqlalchemy_url(url), pool_size=16, max_overflow=16)
    if what == "tables":
        make_tables(url)
    elif what == "http":
        port = int(os.environ["FLUXORA_HEALTH_PORT"])
        uvicorn.run(http(engine), host="127.0.0.1", port=port, log_level="warning")
    else:
        service = Service(what)
        xa = what.endswith("xa")
        service.participant(prepared_transaction_manager(what, engine) if xa else resource_manager(what, engine))
        service.run()


if __name__ == "__main__":
    main()
