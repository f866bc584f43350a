"""``fluxora prune``."""

import json
from typing import Annotated

import typer
from psycopg.conninfo import conninfo_to_dict
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape

from connectors import Connect
from connectors.debezium import PREFIX, database_url, slot_name
from connectors.pruning import Databases
from fluxora.settings import CliSettings
from fluxora.trouble import fail, trying
from participant.retention import RetentionSettings

_out = Console()


def prune(
    really: Annotated[bool, typer.Option("--really", help="Delete; without it, only count.")] = False,
    database: Annotated[str | None, typer.Option("--database", help="Only this database.")] = None,
    wait: Annotated[
        float, typer.Option(min=0, max=3600, help="Seconds that Debezium may take to confirm outbox rows.")
    ] = 60,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")] = False,
) -> None:
    """Delete rows that are past their retention, in all databases at once; the watcher does it bit by bit anyway.

    What is kept for how long: FLUXORA_PRUNE_OUTBOX_DAYS, …_COMMANDS_DAYS, …_EVENTS_DAYS, …_TRANSACTIONS_DAYS,
    …_REMEMBERED_DAYS, …_KEYS_DAYS; participant.retention says why. Reads CONNECT_URL and DATABASE_URL.
    """
    settings = CliSettings()
    if not settings.connect_url or not settings.database_url:
        fail("CONNECT_URL and DATABASE_URL are needed; `make up` writes them to .run/endpoints.env")
    try:
        retention = RetentionSettings()
    except ValidationError as error:
        fail("; ".join(one["msg"].removeprefix("Value error, ") for one in error.errors()))
    with trying(), Connect(settings.connect_url, patience_s=30) as connect:
        try:
            databases = {
                slot_name(connector.name, connector.config): database_url(connector.config)
                for connector in connect.connectors(PREFIX).values()
                if database in (None, connector.config.get("database.dbname"))
            }
        except ValueError as error:
            fail(str(error))
        if database is not None and not databases:
            fail(f"no connector of ours has a database {database!r}")
        told = Databases(retention, settings.database_url).round(
            databases,
            whole=True,
            dry=not really,
            confirm_s=wait,
            platform=database in (None, conninfo_to_dict(settings.database_url).get("dbname")),
        )
    if as_json:
        rows = {name: dict(counts) for name, counts in told.rows.items()}
        kept = {name: reasons for name, reasons in told.kept.items() if reasons}
        typer.echo(json.dumps({"deleted": really, "rows": rows, "kept": kept}))
        return
    for name, counts in told.rows.items():
        shown = ", ".join(f"{count} of {table}" for table, count in sorted(counts.items()) if count)
        _out.print(f"[bold]{escape(name)}[/]: {shown or 'nothing'}", highlight=False, soft_wrap=True)
    for name, reasons in told.kept.items():
        for reason in reasons:
            _out.print(f"  [yellow]{escape(name)}: {escape(reason)}[/]", highlight=False, soft_wrap=True)
    if not really:
        _out.print("Nothing was deleted; --really deletes.")
