"""``python -m bench.pair kafka|http NAME``: one of the two participants of the two-phase commits that are measured.

Each commits one row of its own, so no two transactions meet. ``python -m bench.pair tables`` makes what they need.
"""

import asyncio
import os
import sys
from collections.abc import Mapping
from typing import Any

import psycopg
import uvicorn
from fastapi import FastAPI
from sqlalchemy import Column, Integer, MetaData, Table, Uuid, create_engine, make_url

from deploy.postgres import create_database
from participant import ResourceManager, Service, add_transaction_endpoints, migrations
from participant.settings import sqlalchemy_url

#: By transport. Those over Kafka share the orders' database, and so its connector; those over HTTP need none.
NAMES = {"kafka": ("debit", "credit"), "http": ("debit-http", "credit-http")}


def manager_of(name: str, url: str) -> ResourceManager:
    """A row of the participant's own table a transaction."""
    table = Table(
        f"{name.removesuffix('-http')}_entries",
        MetaData(),
        Column("id", Uuid, primary_key=True),
        Column("amount", Integer, nullable=False),
    )
    engine = create_engine(sqlalchemy_url(url), pool_size=16, max_overflow=16)
    return ResourceManager(engine, service=name, tables={"entries": table})


def payload(entry: str) -> Mapping[str, Any]:
    """What a participant is asked to write."""
    return {"resource_id": entry, "operation": "create", "data": {"amount": 1}}


def make_tables(url: str) -> None:
    """The database if it is missing, the library's tables and ours."""
    given = make_url(url)
    assert given.database is not None
    asyncio.run(create_database(given.set(database="postgres").render_as_string(False), given.database))
    migrations.upgrade(url)
    with psycopg.connect(url) as connection:
        for side in NAMES["kafka"]:
            connection.execute(f"CREATE TABLE IF NOT EXISTS {side}_entries (id uuid PRIMARY KEY, amount int NOT NULL)")


def serve(name: str, url: str) -> None:
    app = FastAPI(title=name)
    add_transaction_endpoints(app, manager_of(name, url))

    @app.get("/ready")
    def ready() -> dict[str, str]:
        return {"status": "ok"}

    uvicorn.run(app, host="127.0.0.1", port=int(os.environ["FLUXORA_HEALTH_PORT"]), log_level="warning")


def main() -> None:
    url = os.environ["DATABASE_URL"]
    match sys.argv[1:]:
        case ["tables"]:
            make_tables(url)
        case ["kafka", name]:
            service = Service(name)
            service.participant(manager_of(name, url))
            service.run()
        case ["http", name]:
            serve(name, url)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
