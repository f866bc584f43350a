"""``python -m examples.bank.tables``: makes the accounts of one bank; safe to run again. Balances are in cents."""

import os

import psycopg

ACCOUNTS = """
    CREATE TABLE IF NOT EXISTS accounts (name text PRIMARY KEY, balance bigint NOT NULL CHECK (balance >= 0));
    INSERT INTO accounts VALUES ('ada', 100_00), ('bob', 100_00) ON CONFLICT DO NOTHING;
"""


def main() -> None:
    with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
        connection.execute(ACCOUNTS)


if __name__ == "__main__":
    main()
