"""``python -m examples.energy.tables NAME``: makes the tables of one example service; safe to run again.

A real service would keep its own Alembic migrations; Fluxora's tables live beside them, in the schema ``fluxora``.
"""

import os
import sys

import psycopg

TABLES = {
    "meters": """
        CREATE TABLE IF NOT EXISTS readings (
            batch uuid, meter text NOT NULL, hour int, kwh double precision NOT NULL,
            withdrawn boolean NOT NULL DEFAULT false, PRIMARY KEY (batch, hour));
    """,
    "forecast": """
        CREATE TABLE IF NOT EXISTS forecasts (
            saga uuid PRIMARY KEY, meter text NOT NULL, kwh double precision NOT NULL,
            withdrawn boolean NOT NULL DEFAULT false);
    """,
    "billing": """
        CREATE TABLE IF NOT EXISTS customers (name text PRIMARY KEY, credit_limit double precision NOT NULL);
        CREATE TABLE IF NOT EXISTS invoices (
            saga uuid PRIMARY KEY, customer text NOT NULL REFERENCES customers, amount double precision NOT NULL,
            cancelled boolean NOT NULL DEFAULT false);
        INSERT INTO customers VALUES ('ada', 100), ('bob', 100), ('carol', 5) ON CONFLICT DO NOTHING;
    """,
}


def main() -> None:
    with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
        connection.execute(TABLES[sys.argv[1]])


if __name__ == "__main__":
    main()
