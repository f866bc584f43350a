"""A service's database with accounts, and the managers that prepare changes of them."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import (
    CheckConstraint,
    Column,
    Connection,
    Engine,
    Integer,
    MetaData,
    Table,
    Text,
    create_engine,
    text,
)

from participant import Change, PreparedTransactionManager, Refused, ResourceManager
from participant.settings import sqlalchemy_url

metadata = MetaData()
accounts = Table(
    "accounts",
    metadata,
    Column("id", Text, primary_key=True),
    Column("email", Text, unique=True),
    Column("balance", Integer, CheckConstraint("balance >= 0"), nullable=False, server_default="0"),
)
orders = Table("orders", metadata, Column("id", Integer, primary_key=True), Column("note", Text))


def transfer(connection: Connection, change: Change) -> None:
    """Add ``data["amount"]`` to the balance: right whatever else happens to it."""
    connection.execute(
        text("UPDATE accounts SET balance = balance + :amount WHERE id = :id"),
        {"amount": change.data["amount"], "id": change.resource_id},
    )


def must_exist(connection: Connection, change: Change) -> Refused | None:
    found = connection.execute(text("SELECT 1 FROM accounts WHERE id = :id"), {"id": change.resource_id}).first()
    return None if found else Refused(f"there is no account {change.resource_id}")


def manager_of(engine: Engine, *, service: str = "bank", lock_wait_s: float = 2.0) -> ResourceManager:
    manager = ResourceManager(
        engine, service=service, tables={"accounts": accounts, "orders": orders}, lock_wait_s=lock_wait_s
    )
    manager.resource("money", apply=transfer, validate=must_exist)
    return manager


class Bank:
    """What a test asks of the database."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.manager = manager_of(engine)

    def sql(self, statement: str, **parameters: Any) -> list[Any]:
        with self.engine.begin() as connection:
            result = connection.execute(text(statement), parameters)
            return list(result.all()) if result.returns_rows else []

    def open(self, **balances: int) -> None:
        for id, balance in balances.items():
            self.sql("INSERT INTO accounts (id, balance) VALUES (:id, :balance)", id=id, balance=balance)

    def balances(self) -> dict[str, int]:
        return dict(self.sql("SELECT id, balance FROM accounts"))

    def held(self) -> set[tuple[str, str, str]]:
        return {tuple(row) for row in self.sql("SELECT resource, resource_id, transaction_id FROM fluxora.held")}

    def state(self, transaction_id: str) -> str | None:
        rows = self.sql("SELECT state FROM fluxora.prepared WHERE transaction_id = :id", id=transaction_id)
        return rows[0][0] if rows else None

    def gids(self) -> list[str]:
        return [row[0] for row in self.sql("SELECT gid FROM pg_prepared_xacts WHERE database = current_database()")]


@pytest.fixture
def bank(engine: Engine) -> Bank:
    """Empty tables, nothing prepared."""
    bank = Bank(engine)
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        for gid in bank.gids():
            connection.execute(text(f"ROLLBACK PREPARED '{gid}'"))
    metadata.create_all(engine)
    bank.sql("TRUNCATE accounts, orders, fluxora.held, fluxora.prepared, fluxora.outbox, fluxora.inbox")
    return bank


@pytest.fixture
def another_engine(migrated_url: str) -> Iterator[Engine]:
    """As another process of the service would have."""
    engine = create_engine(sqlalchemy_url(migrated_url), pool_size=20)
    yield engine
    engine.dispose()


def withdraw(account: str, amount: int) -> Callable[[Connection], Refused | None]:
    """Work for PREPARE TRANSACTION."""

    def work(connection: Connection) -> Refused | None:
        done = connection.execute(
            text("UPDATE accounts SET balance = balance - :amount WHERE id = :id"), {"amount": amount, "id": account}
        )
        return None if done.rowcount else Refused(f"there is no account {account}")

    return work


def prepared_manager(engine: Engine, *, service: str = "bank", lock_wait_s: float = 1.0) -> PreparedTransactionManager:
    return PreparedTransactionManager(
        engine,
        service=service,
        work=lambda connection, payload: withdraw(payload["account"], payload["amount"])(connection),
        lock_wait_s=lock_wait_s,
    )
