"""Meters: takes in a day's readings. Copy this file to begin a service of your own."""

from sqlalchemy import Connection, text

from participant import Command, Service

meters = Service("meters")


@meters.action("ingest-readings")
def ingest(connection: Connection, command: Command) -> dict[str, float]:
    """The rows and the reply commit together; the handler itself never commits."""
    readings = command.payload["kwh"]
    connection.execute(
        text("INSERT INTO readings (batch, meter, hour, kwh) VALUES (:batch, :meter, :hour, :kwh)"),
        [
            {"batch": command.transaction_id, "meter": command.payload["meter"], "hour": hour, "kwh": kwh}
            for hour, kwh in enumerate(readings)
        ],
    )
    return {"kwh": round(sum(readings), 2)}


@meters.compensation("ingest-readings")
def withdraw(connection: Connection, command: Command) -> None:
    """Runs only if the action ran, and once. Readings are withdrawn, not deleted: an auditor may ask."""
    connection.execute(
        text("UPDATE readings SET withdrawn = true WHERE batch = :batch"), {"batch": command.transaction_id}
    )


if __name__ == "__main__":
    meters.run()
