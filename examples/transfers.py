"""The demo's two-phase commits: money that moves between two banks, each with a database of its own, or stays.

One transfer commits. The other is refused by the bank that is to pay, and neither bank changes.
"""

import time
from dataclasses import dataclass
from typing import Any

import httpx
import psycopg
from rich.console import Console
from rich.markup import escape
from rich.table import Table

#: Who pays, who is paid.
BANKS = ("checking", "savings")


@dataclass(frozen=True)
class Transfer:
    """From ``account`` of the first bank to ``account`` of the second; the banks open with 100.00 in each account."""

    account: str
    cents: int
    ends: str


TRANSFERS = [Transfer("ada", 30_00, "COMMITTED"), Transfer("bob", 150_00, "ABORTED")]

Balances = dict[tuple[str, str], int]


def show_transfers(console: Console, coordinator: httpx.Client, endpoints: dict[str, str]) -> list[str]:
    """Run the transfers and print what came of them; returns what is not as it must be."""
    wrong: list[str] = []
    console.rule("Two-phase commits: checking → savings")
    before = balances(endpoints["DATABASE_URL"])
    expected = dict(before)
    for transfer in TRANSFERS:
        transaction_id, answers = run(coordinator, endpoints, transfer)
        document = coordinator.get(f"/transactions/{transaction_id}", params={"wait": "30s"}).raise_for_status().json()
        show_transaction(console, transfer, document, answers)
        if document["state"] != transfer.ends:
            wrong.append(f"the transfer of {transfer.account} is {document['state']}, not {transfer.ends}")
        if transfer.ends == "COMMITTED":
            expected[BANKS[0], transfer.account] -= transfer.cents
            expected[BANKS[1], transfer.account] += transfer.cents
    after = balances(endpoints["DATABASE_URL"])
    show_balances(console, before, after)
    wrong += [
        f"{bank} has {after.get((bank, account))} cents of {account}, not {cents}"
        for (bank, account), cents in expected.items()
        if after.get((bank, account)) != cents
    ]
    if sum(after.values()) != sum(before.values()):
        wrong.append(f"there were {sum(before.values())} cents in all, and now there are {sum(after.values())}")
    return wrong + left_over(endpoints["DATABASE_URL"])


def run(coordinator: httpx.Client, endpoints: dict[str, str], transfer: Transfer) -> tuple[str, list[str]]:
    """Begin, prepare and, if everybody has voted yes, commit; returns the id and the states that REST answered."""
    participants = [
        {
            "service_name": bank,
            "service_url": endpoints[f"{bank.upper()}_URL"],
            "payload": {"resource_id": transfer.account, "operation": "update", "data": {"amount": amount}},
        }
        for bank, amount in zip(BANKS, (-transfer.cents, transfer.cents), strict=True)
    ]
    begun = coordinator.post("/transactions", json={"timeout_seconds": 30, "participants": participants})
    transaction_id: str = begun.raise_for_status().json()["transaction_id"]
    state = ask(coordinator, transaction_id, "prepare")
    answers = [f"prepare → {state}"]
    if state == "PREPARED":
        answers.append(f"commit → {ask(coordinator, transaction_id, 'commit')}")
    return transaction_id, answers


def ask(coordinator: httpx.Client, transaction_id: str, verb: str) -> str:
    """The state when what was asked for is decided. REST waits for that; on a machine that is very busy, we do too."""
    answer = coordinator.post(f"/transactions/{transaction_id}/{verb}")
    if answer.status_code != 409:  # decided otherwise; its body names the state too
        answer.raise_for_status()
    state: str = answer.json()["state"]
    while state in ("STARTED", "PREPARING"):
        time.sleep(0.2)
        state = coordinator.get(f"/transactions/{transaction_id}").raise_for_status().json()["state"]
    return state


def show_transaction(console: Console, transfer: Transfer, document: dict[str, Any], answers: list[str]) -> None:
    colour = {"COMMITTED": "green", "ABORTED": "yellow"}.get(document["state"], "red")
    # Not the table's title, which would be wrapped to the table's width.
    told = f"{transfer.account}, {money(transfer.cents)}: transaction {document['transaction_id']}"
    console.print(f"{told} [{colour}]{document['state']}[/] ({', '.join(answers)})", soft_wrap=True)
    table = Table("participant", "called by", "state", "attempt", "reason")
    for participant in document["participants"]:
        table.add_row(
            participant["service_name"],
            participant["transport"],
            participant["state"],
            str(participant["attempt"]),
            escape(participant["reason"] or ""),
        )
    console.print(table)


def balances(database_url: str) -> Balances:
    """Cents by bank and account, from each bank's own database."""
    found: Balances = {}
    for bank in BANKS:
        with psycopg.connect(f"{database_url}_{bank}") as connection:
            for account, cents in connection.execute("SELECT name, balance FROM accounts ORDER BY name"):
                found[bank, account] = cents
    return found


def show_balances(console: Console, before: Balances, after: Balances) -> None:
    console.print("What the banks hold, each in a database of its own")
    table = Table("bank", "account", "before", "after")
    for (bank, account), cents in before.items():
        table.add_row(bank, account, money(cents), money(after.get((bank, account), 0)))
    table.add_section()
    table.add_row("both", "all", money(sum(before.values())), money(sum(after.values())))
    console.print(table)


def left_over(database_url: str) -> list[str]:
    """Promises that nobody has taken back or kept."""
    wrong = []
    for bank in BANKS:
        with psycopg.connect(f"{database_url}_{bank}") as connection:
            held = connection.execute("SELECT resource_id, transaction_id FROM fluxora.held").fetchall()
        wrong += [f"{bank} still holds {account} for transaction {id}" for account, id in held]
    return wrong


def money(cents: int) -> str:
    return f"{cents / 100:.2f}"
