"""``python -m tests.services.ledger NAME``: a service that keeps a ledger of what it did, to count it afterwards.

Nothing in its table stops a second entry: that there is none is for the library to see to. The payload says how to
behave: ``{"refuse": true}``, ``{"raise": true}`` (always), ``{"undo_fails": 2}`` (the first two compensations raise),
``{"seconds": 0.2}``.
"""

import os
import sys
import time
from typing import Any

import psycopg
from sqlalchemy import Connection, text

from participant import Command, Refused, Service

#: They share one database, and so one connector.
NAMES = ("alpha", "beta", "gamma")

_ENTER = text("INSERT INTO entries (saga, step, operation, service) VALUES (:saga, :step, :operation, :service)")


def ledger(name: str) -> Service:
    service = Service(name)

    def enter(connection: Connection, command: Command) -> None:
        entry = {"saga": command.transaction_id, "step": command.step, "operation": command.operation, "service": name}
        connection.execute(_ENTER, entry)

    @service.action("enter")
    def do(connection: Connection, command: Command) -> dict[str, Any] | Refused:
        enter(connection, command)
        if command.payload.get("seconds"):
            time.sleep(command.payload["seconds"])
        if command.payload.get("refuse"):
            return Refused(f"{name} says no")
        if command.payload.get("raise"):
            raise RuntimeError(f"{name} is broken")
        return {"service": name, "attempt": command.attempt}

    @service.compensation("enter")
    def undo(connection: Connection, command: Command) -> None:
        enter(connection, command)
        if command.attempt <= command.payload.get("undo_fails", 0):
            raise RuntimeError(f"{name} cannot undo yet")

    return service


def main() -> None:
    if sys.argv[1] == "tables":
        with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
            connection.execute(
                "CREATE TABLE IF NOT EXISTS entries (saga uuid, step text, operation text, service text, "
                "at timestamptz DEFAULT clock_timestamp())"
            )
    else:
        ledger(sys.argv[1]).run()


if __name__ == "__main__":
    main()
