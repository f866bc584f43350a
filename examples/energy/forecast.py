"""Forecast: publishes what tomorrow will need."""

from sqlalchemy import Connection, text

from participant import Command, Service

forecast = Service("forecast")


@forecast.action("publish-forecast")
def publish(connection: Connection, command: Command) -> dict[str, float]:
    """Persistence, the forecaster's baseline: tomorrow is like today."""
    expected = round(sum(command.payload["kwh"]), 2)
    connection.execute(
        text("INSERT INTO forecasts (saga, meter, kwh) VALUES (:saga, :meter, :kwh)"),
        {"saga": command.transaction_id, "meter": command.payload["meter"], "kwh": expected},
    )
    return {"kwh": expected}


@forecast.compensation("publish-forecast")
def withdraw(connection: Connection, command: Command) -> None:
    connection.execute(
        text("UPDATE forecasts SET withdrawn = true WHERE saga = :saga"), {"saga": command.transaction_id}
    )


if __name__ == "__main__":
    forecast.run()
