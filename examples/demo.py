"""``make demo``: real transactions through the real stack, shown, checked, and cleaned up.

Uses ports and data of its own, so it can run beside ``make up``. Exits 0 only if everything is as it must be.
"""

import os
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import httpx
import psycopg
import typer
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from deploy.stack import Stack, StackError
from examples.transfers import show_transfers

console = Console(width=int(os.environ.get("COLUMNS", "120")))

SERVICES = [Path(__file__).with_name(name) for name in ("services.toml", "bank.toml")]
DAY = [0.4, 0.3, 0.3, 0.5, 1.2, 2.0, 1.4, 0.8]
HUNGRY_DAY = [kwh * 20 for kwh in DAY]

#: Who, what was metered, and how it must end.
CASES = [
    ("ada", DAY, "COMPLETED"),
    ("bob", DAY, "COMPLETED"),
    ("carol", HUNGRY_DAY, "FAILED"),
    ("nobody", DAY, "FAILED"),
]

#: Each service's rows: database suffix, what to select, what shows that a row was undone.
ROWS = {
    "meters": ("SELECT batch::text, meter, count(*), sum(kwh), bool_and(withdrawn) FROM readings GROUP BY 1, 2", 8),
    "forecast": ("SELECT saga::text, meter, 1, kwh, withdrawn FROM forecasts", 1),
    "billing": ("SELECT saga::text, customer, 1, amount, cancelled FROM invoices", 1),
}


@dataclass(frozen=True)
class Case:
    customer: str
    ends: str
    saga_id: str


def main(
    keep: Annotated[bool, typer.Option("--keep", help="Leave everything running, to look around.")] = False,
    port_base: Annotated[int, typer.Option(envvar="FLUXORA_DEMO_PORT_BASE", help="First of a hundred ports.")] = 27600,
    run_dir: Annotated[Path, typer.Option(envvar="FLUXORA_DEMO_RUN_DIR", help="Where data and logs go.")] = Path(
        ".run-demo"
    ),
) -> None:
    """Run sagas that complete and that are undone, and two-phase commits that commit and that abort.

    Example: python -m examples.demo --keep
    """
    began = time.monotonic()
    stack = Stack(run_dir, port_base, services=SERVICES, report=lambda line: console.print(f"  {line}", style="dim"))
    stack.clean()
    console.rule("Starting PostgreSQL, Kafka, Connect with Debezium, the schema registry, and Fluxora")
    wrong = ["it was broken off"]
    try:
        endpoints = stack.up()
        console.print(f"Everything is ready after {time.monotonic() - began:.0f} s.\n")
        wrong = show(endpoints)
    except StackError as error:
        console.print(f"[red]The stack did not start:[/] {escape(str(error))}")
        raise typer.Exit(1) from None
    finally:
        if keep and not wrong:
            console.print(f"Left running in {run_dir}. Stop it: FLUXORA_RUN_DIR={run_dir} python -m deploy clean")
        else:
            stack.clean()
    for line in wrong:
        console.print(f"[red]WRONG:[/] {escape(line)}")
    console.rule("FAILED" if wrong else f"All as it must be, in {time.monotonic() - began:.0f} s")
    raise typer.Exit(1 if wrong else 0)


def show(endpoints: dict[str, str]) -> list[str]:
    """Run the transactions and print what came of them; returns what is not as it must be."""
    wrong: list[str] = []
    with httpx.Client(base_url=endpoints["COORDINATOR_URL"], timeout=60) as coordinator:
        console.rule("Sagas: meters → forecast → billing")
        cases = [Case(customer, ends, start_saga(coordinator, customer, kwh)) for customer, kwh, ends in CASES]
        for case in cases:
            saga = coordinator.get(f"/sagas/{case.saga_id}", params={"wait": "60s"}).raise_for_status().json()
            show_saga(case, saga)
            if saga["state"] != case.ends:
                wrong.append(f"the saga of {case.customer} is {saga['state']}, not {case.ends}")
        wrong += show_rows(endpoints["DATABASE_URL"], cases)
        wrong += show_transfers(console, coordinator, endpoints)
    wrong += show_topics(endpoints)
    return wrong


def start_saga(coordinator: httpx.Client, customer: str, kwh: list[float]) -> str:
    """This is all that it takes: one POST."""
    readings = {"meter": f"meter-of-{customer}", "kwh": kwh}
    answer = coordinator.post(
        "/sagas",
        json={
            "name": "settle-day",
            "steps": [
                {"name": "ingest-readings", "service_name": "meters", "payload": readings},
                {"name": "publish-forecast", "service_name": "forecast", "payload": readings},
                {"name": "bill-customer", "service_name": "billing", "payload": {"customer": customer, "kwh": kwh}},
            ],
        },
        headers={"Idempotency-Key": f"settle-{customer}"},
    )
    saga_id: str = answer.raise_for_status().json()["saga_id"]
    return saga_id


def show_saga(case: Case, saga: dict[str, Any]) -> None:
    colour = {"COMPLETED": "green", "FAILED": "yellow"}.get(saga["state"], "red")
    title = f"{case.customer}: saga {saga['saga_id']} [{colour}]{saga['state']}[/]"
    table = Table("step", "service", "state", "attempt", "ms", "result or reason", title=title, title_justify="left")
    for step in saga["steps"]:
        told = step.get("result") if step["state"] == "EXECUTED" else step.get("reason")
        table.add_row(
            step["id"], step["service_name"], step["state"], str(step["attempt"]), _took(step), escape(str(told or ""))
        )
    console.print(table)


def _took(step: dict[str, Any]) -> str:
    if not step.get("started_at") or not step.get("ended_at"):
        return ""
    return f"{(_seconds(step['ended_at']) - _seconds(step['started_at'])) * 1000:.0f}"


def _seconds(rfc3339: str) -> float:
    return datetime.fromisoformat(rfc3339).timestamp()


def show_rows(database_url: str, cases: list[Case]) -> list[str]:
    """What stands in each service's own database: of completed sagas it is there, of failed ones it is undone."""
    wrong = []
    console.rule("What the services hold")
    for service, (query, rows_each) in ROWS.items():
        with psycopg.connect(f"{database_url}_{service}") as connection:
            rows = {row[0]: row[1:] for row in connection.execute(query).fetchall()}
        table = Table(
            "saga", "whose", "rows", "amount", "undone", title=f"{service} (database …_{service})", title_justify="left"
        )
        for case in cases:
            if case.saga_id not in rows:
                table.add_row(case.saga_id, case.customer, "none", "", "")
                if case.ends == "COMPLETED" or service != "billing":
                    wrong.append(f"{service} has no row of {case.customer}'s saga {case.saga_id}")
                continue
            whose, count, amount, undone = rows.pop(case.saga_id)
            table.add_row(case.saga_id, whose, str(count), f"{amount:.2f}", "undone" if undone else "")
            if count != rows_each:
                wrong.append(f"{service} has {count} rows of saga {case.saga_id}, not {rows_each}")
            if undone != (case.ends == "FAILED"):
                wrong.append(
                    f"{service}: the rows of {case.ends} saga {case.saga_id} are {'' if undone else 'not '}undone"
                )
        wrong += [f"{service} has rows of an unknown saga {saga}" for saga in rows]
        console.print(table)
    return wrong


def show_topics(endpoints: dict[str, str]) -> list[str]:
    """The topics, how much is in them, and how to look."""
    console.rule("Kafka topics")
    admin = AdminClient({"bootstrap.servers": endpoints["KAFKA_BOOTSTRAP_SERVERS"]})
    metadata = admin.list_topics(timeout=10)
    counts = {}
    for name, topic in sorted(metadata.topics.items()):
        if not name.startswith("_") and ("fluxora" in name or name.endswith((".commands", ".dlq"))):
            latest = admin.list_offsets(
                {TopicPartition(name, p): OffsetSpec.latest() for p in topic.partitions}  # type: ignore[no-untyped-call]
            )
            counts[name] = sum(future.result().offset for future in latest.values())
    table = Table("topic", "records")
    for name, count in counts.items():
        table.add_row(name, str(count))
    console.print(table)
    console.print(
        "Look into one with kcat (apt-get install kcat), while the stack is up (make up, or make demo ARGS=--keep):"
    )
    console.print(
        f"  kcat -b {endpoints['KAFKA_BOOTSTRAP_SERVERS']} -C -e -t fluxora.transactions.events -f '%k %h\\n'",
        style="bold",
        soft_wrap=True,
        markup=False,
    )
    console.print("The values are Avro; a kcat that was built with it (Debian's is not) shows them too, with:")
    console.print(
        f"  -s value=avro -r {endpoints['SCHEMA_REGISTRY_URL']}\n", style="bold", soft_wrap=True, markup=False
    )
    return [f"{name} holds {count} dead letters" for name, count in counts.items() if name.endswith(".dlq") and count]


if __name__ == "__main__":
    typer.run(main)
