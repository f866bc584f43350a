"""``fluxora audit``."""

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from connectors import Connect
from fluxora import audit as audits
from fluxora.audit import DatabaseAudit
from fluxora.durations import point_in_time
from fluxora.settings import CliSettings
from fluxora.trouble import fail, trying

#: A gap, or something that needs a person.
UNSOUND = 3
_SHOWN = 20
_out = Console()


def audit(
    since: Annotated[
        str | None, typer.Option("--from", help="Rows from this time on: RFC 3339, or 15m, 2h, 1d ago.")
    ] = None,
    database: Annotated[str | None, typer.Option("--database", help="Only this database.")] = None,
    refill: Annotated[bool, typer.Option("--refill", help="Publish missing rows again, with their ids.")] = False,
    limit: Annotated[
        int, typer.Option(min=1, help="Of the missing rows of a database, name at most so many; all are counted.")
    ] = 10_000,
    wait: Annotated[float, typer.Option(min=0, help="Seconds that rows under way may take to arrive.")] = 60,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")] = False,
) -> None:
    """Compare the ids in every outbox with the ids in the topics; look at slots, publications and connectors.

    Rows are held in a temporary file, about 150 bytes each, in the folder that TMPDIR names.

    Exit code 3 when a row is missing, or when something needs a person. Reads CONNECT_URL and
    KAFKA_BOOTSTRAP_SERVERS; the databases are those of the connectors.
    """
    settings = CliSettings()
    if not settings.connect_url or not settings.kafka_bootstrap_servers:
        fail("CONNECT_URL and KAFKA_BOOTSTRAP_SERVERS are needed; `make up` writes them to .run/endpoints.env")
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with (
        trying(),
        Connect(settings.connect_url, patience_s=30) as connect,
        Progress(*columns, console=console, transient=True, disable=as_json or not console.is_terminal) as bar,
    ):

        def progress(what: str) -> Callable[[int, int], None]:
            task = bar.add_task(what, total=None)
            return lambda done, total: bar.update(task, completed=done, total=total)

        found = audits.audit(
            connect,
            settings.kafka_bootstrap_servers,
            since=None if since is None else datetime.fromtimestamp(point_in_time(since, time.time()), UTC),
            wait_s=wait,
            only=database,
            limit=limit,
            refill=refill,
            progress=progress,
        )
    if as_json:
        typer.echo(json.dumps(audits.as_json(found)))
    else:
        for one in found:
            _show(one)
    if any(not one.sound for one in found):
        raise typer.Exit(UNSOUND)


def _show(one: DatabaseAudit) -> None:
    behind = "" if one.lag_bytes is None else f", Debezium is {one.lag_bytes} bytes of log behind"
    held = "" if one.retained_bytes is None else f" and holds {one.retained_bytes} bytes back"
    _out.print(f"[bold]{escape(one.database)}[/]: {one.rows} rows{behind}{held}", highlight=False, soft_wrap=True)
    if one.missing_rows:
        _out.print(
            f"  [red]{one.missing_rows} rows are in no topic[/]; no gap up to {one.no_gap_up_to}", highlight=False
        )
        for row in one.missing[:_SHOWN]:
            _out.print(
                f"    {row.created_at}  {row.id}  {escape(row.type)} → {escape(row.topic)}, key {escape(row.key)}",
                highlight=False,
                soft_wrap=True,
            )
        if one.missing_rows > _SHOWN:
            _out.print(f"    ... and {one.missing_rows - _SHOWN} more (--json has --limit of them)")
        _out.print(
            f"  {one.refilled} of them published again"
            if one.refilled
            else "  `fluxora audit --refill` publishes them again"
        )
    else:
        _out.print(f"  [green]no gap up to {one.no_gap_up_to}[/]", highlight=False)
    if one.under_way:
        _out.print(f"  [yellow]{one.under_way} rows have not arrived, and Debezium has not confirmed them either[/]")
    if one.beyond_retention:
        _out.print(f"  {one.beyond_retention} rows are older than what their topics still hold")
    for problem in one.problems:
        _out.print(f"  [red]{escape(problem)}[/]", highlight=False, soft_wrap=True)
