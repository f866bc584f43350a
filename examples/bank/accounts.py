"""``python -m examples.bank.accounts NAME``: one bank, over HTTP. Copy this file to begin a participant of your own.

A transfer's payload is ``{"resource_id": "ada", "operation": "update", "data": {"amount": -30}}``: what is taken is
set aside at prepare, because tellers spend from the same accounts; what is given arrives at commit.
"""

import os
import sys

import uvicorn
from fastapi import FastAPI
from sqlalchemy import Connection, Engine, create_engine, text

from participant import Change, Refused, ResourceManager, add_transaction_endpoints
from participant.settings import sqlalchemy_url

_TAKE = text("UPDATE accounts SET balance = balance - :amount WHERE name = :name AND balance >= :amount")
_GIVE = text("UPDATE accounts SET balance = balance + :amount WHERE name = :name")
_EXISTS = text("SELECT 1 FROM accounts WHERE name = :name")


def must_exist(connection: Connection, change: Change) -> Refused | None:
    if not isinstance(change.data, dict) or not isinstance(change.data.get("amount"), int):
        return Refused("data.amount must be whole cents")
    found = connection.execute(_EXISTS, {"name": change.resource_id}).first()
    return None if found else Refused(f"there is no account {change.resource_id}")


def set_aside(connection: Connection, change: Change) -> Refused | None:
    """At prepare: money that is promised is gone for everybody else."""
    amount = -change.data["amount"]
    if amount <= 0:
        return None
    taken = connection.execute(_TAKE, {"amount": amount, "name": change.resource_id})
    return None if taken.rowcount else Refused(f"{change.resource_id} has less than {amount} cents")


def give(connection: Connection, change: Change) -> None:
    """At commit: what comes in. What goes out was set aside before."""
    if change.data["amount"] > 0:
        connection.execute(_GIVE, {"amount": change.data["amount"], "name": change.resource_id})


def give_back(connection: Connection, change: Change) -> None:
    """At abort."""
    if change.data["amount"] < 0:
        connection.execute(_GIVE, {"amount": -change.data["amount"], "name": change.resource_id})


def bank(name: str, engine: Engine) -> FastAPI:
    app = FastAPI(title=name)
    manager = ResourceManager(engine, service=name)
    manager.resource("account", validate=must_exist, reserve=set_aside, apply=give, release=give_back)
    add_transaction_endpoints(app, manager)

    @app.get("/health")
    @app.get("/ready")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/accounts")
    def accounts() -> dict[str, int]:
        with engine.connect() as connection:
            return {row.name: row.balance for row in connection.execute(text("SELECT name, balance FROM accounts"))}

    return app


def main() -> None:
    name = sys.argv[1]
    engine = create_engine(sqlalchemy_url(os.environ["DATABASE_URL"]), pool_size=16)
    uvicorn.run(bank(name, engine), host="127.0.0.1", port=int(os.environ["FLUXORA_HEALTH_PORT"]), log_level="warning")


if __name__ == "__main__":
    main()
