"""The service that the worker tests run as a process of its own: ``python participant_service.py NAME``."""

import sys
import time

from sqlalchemy import Connection, text

from participant import Command, Refused, Service

service = Service(sys.argv[1])


@service.action("bill")
def bill(connection: Connection, command: Command) -> dict[str, int] | Refused:
    if (pause := command.payload.get("sleep")) is not None:
        time.sleep(pause)
    if command.payload.get("raise"):
        raise ValueError("as asked")
    if command.payload.get("refuse"):
        return Refused("as asked")
    connection.execute(text("INSERT INTO bill VALUES (:id, 1)"), {"id": command.transaction_id})
    return {"amount": 1}


@service.compensation("bill")
def unbill(connection: Connection, command: Command) -> None:
    connection.execute(text("DELETE FROM bill WHERE id = :id"), {"id": command.transaction_id})


service.run()
