"""``python -m tests.torture.shop``: an HTTP service that steps of sagas call, and that gets messages.

It does what the contract asks of an HTTP service, and no more: it answers a repeated Idempotency-Key as it answered the
first time, a compensation without its action undoes nothing, an action after its compensation is refused. Its effects
are rows that nothing keeps from being doubled but that.

A payload may say ``{"refuse": true}``, ``{"seconds": 2}`` (after the effect, before the answer) and ``{"flaky": true}``
(the first attempt takes effect and is answered 500).
"""

import os
import sys
import time
from typing import Any

import psycopg
import uvicorn
from fastapi import FastAPI, Header, Request
from fastapi.responses import JSONResponse
from sqlalchemy import Connection, Engine, create_engine, text

from participant.settings import sqlalchemy_url

TABLES = """
    CREATE TABLE IF NOT EXISTS shop_steps (
        saga uuid, step text, operation text, status int, PRIMARY KEY (saga, step, operation));
    CREATE TABLE IF NOT EXISTS shop_entries (
        saga uuid, step text, operation text, at timestamptz DEFAULT clock_timestamp());
    CREATE TABLE IF NOT EXISTS shop_received (place bigserial, message uuid, at timestamptz DEFAULT clock_timestamp());
"""
DONE, REFUSED = 200, 409
#: Of what its action never ran for.
CANCELLED = 422

_SETTLE = text("INSERT INTO shop_steps VALUES (CAST(:saga AS uuid), :step, :operation, :status) ON CONFLICT DO NOTHING")
_STATUS = text(
    "SELECT status FROM shop_steps WHERE saga = CAST(:saga AS uuid) AND step = :step AND operation = :operation"
)
_ENTER = text("INSERT INTO shop_entries (saga, step, operation) VALUES (CAST(:saga AS uuid), :step, :operation)")
_RECEIVE = text("INSERT INTO shop_received (message) VALUES (CAST(:message AS uuid))")


def act(connection: Connection, saga: str, step: str, refuse: bool) -> int:
    """Run the action once; returns what it was answered the first time."""
    row = {"saga": saga, "step": step, "operation": "ACTION"}
    if connection.execute(_SETTLE, {**row, "status": REFUSED if refuse else DONE}).rowcount and not refuse:
        connection.execute(_ENTER, row)
    return int(connection.execute(_STATUS, row).scalar_one())


def undo(connection: Connection, saga: str, step: str) -> None:
    """Undo the action once, if it ran; keep it from running if it has not."""
    action = {"saga": saga, "step": step, "operation": "ACTION"}
    connection.execute(_SETTLE, {**action, "status": CANCELLED})
    ran = connection.execute(_STATUS, action).scalar_one() == DONE
    row = {"saga": saga, "step": step, "operation": "COMPENSATION"}
    if connection.execute(_SETTLE, {**row, "status": DONE}).rowcount and ran:
        connection.execute(_ENTER, row)


def shop(engine: Engine) -> FastAPI:
    app = FastAPI()

    @app.post("/steps/{step}")
    def action(
        step: str,
        payload: dict[str, Any],
        fluxora_transaction_id: str = Header(),
        fluxora_command_id: str = Header(),
    ) -> JSONResponse:
        with engine.begin() as connection:
            status = act(connection, fluxora_transaction_id, step, bool(payload.get("refuse")))
        if payload.get("seconds"):
            time.sleep(payload["seconds"])
        if payload.get("flaky") and fluxora_command_id.endswith(":1"):
            return JSONResponse({"detail": "as asked"}, 500)
        return JSONResponse({"step": step} if status == DONE else {"detail": "the shop says no"}, status)

    @app.post("/steps/{step}/undo")
    def compensation(step: str, body: dict[str, Any], fluxora_transaction_id: str = Header()) -> dict[str, Any]:
        with engine.begin() as connection:
            undo(connection, fluxora_transaction_id, step)
        return {}

    @app.post("/messages")
    def message(request: Request, idempotency_key: str = Header()) -> dict[str, Any]:
        with engine.begin() as connection:
            connection.execute(_RECEIVE, {"message": idempotency_key})
        return {}

    @app.get("/ready")
    def ready() -> dict[str, str]:
        return {"status": "ok"}

    return app


def main() -> None:
    url = os.environ["DATABASE_URL"]
    if sys.argv[1:] == ["tables"]:
        with psycopg.connect(url) as connection:
            connection.execute(TABLES)
        return
    engine = create_engine(sqlalchemy_url(url), pool_size=16, max_overflow=16, pool_pre_ping=True)
    uvicorn.run(shop(engine), host="127.0.0.1", port=int(os.environ["FLUXORA_HEALTH_PORT"]), log_level="warning")


if __name__ == "__main__":
    main()
