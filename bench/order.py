"""``python -m bench.order NAME``: one of the three services of the order saga, as in the peers' benchmarks.

Each step is one local transaction that inserts one row; its compensation updates it. Handlers are written per batch,
the fast form.
"""

import os
import sys
import time

import psycopg
from sqlalchemy import Connection, text

from participant import Command, Refused, Service

NAMES = ("stock", "payment", "shipping")

_INSERT = text("INSERT INTO {} (order_id, amount) SELECT * FROM unnest(CAST(:ids AS uuid[]), CAST(:amounts AS int[]))")
_UNDO = text("UPDATE {} SET state = 'undone' WHERE order_id = ANY(CAST(:ids AS uuid[]))")


def _refused(command: Command, now: float) -> bool:
    return bool(command.payload["refuse"] or now < command.payload.get("not_before", 0))


def order_service(name: str) -> Service:
    service = Service(name)
    insert, undo_ = text(_INSERT.text.format(name)), text(_UNDO.text.format(name))

    @service.action("do", batch=True)
    def do(connection: Connection, commands: list[Command]) -> list[dict[str, int] | Refused]:
        now = time.time()
        accepted = [command for command in commands if not _refused(command, now)]
        if accepted:
            connection.execute(insert, {"ids": [c.transaction_id for c in accepted], "amounts": [1] * len(accepted)})
        return [Refused("no") if _refused(command, now) else {"amount": 1} for command in commands]

    @service.compensation("do", batch=True)
    def undo(connection: Connection, commands: list[Command]) -> list[None]:
        connection.execute(undo_, {"ids": [command.transaction_id for command in commands]})
        return [None] * len(commands)

    return service


def main() -> None:
    if sys.argv[1] == "tables":
        with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
            for name in NAMES:
                connection.execute(
                    f"CREATE TABLE IF NOT EXISTS {name} (order_id uuid PRIMARY KEY, amount int NOT NULL, "
                    "state text NOT NULL DEFAULT 'done', at timestamptz NOT NULL DEFAULT now())"
                )
    else:
        order_service(sys.argv[1]).run()


if __name__ == "__main__":
    main()
