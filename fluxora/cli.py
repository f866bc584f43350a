"""``fluxora``, for operators and for the supervisor."""

import json
import logging
import sys
from collections.abc import Callable
from typing import Annotated, TypeVar

import stamina
import structlog
import typer
from rich.console import Console
from rich.table import Table

from fluxora import check_cli, dlq_cli, log_cli, message_cli, saga_cli, schema_cli, tx_cli
from fluxora import init as setup
from fluxora.settings import CliSettings
from fluxora.trouble import fail

app = typer.Typer(
    help="Fluxora Transactions: sagas over PostgreSQL and Kafka.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
service_app = typer.Typer(help="Services that take part in transactions.", no_args_is_help=True)
app.add_typer(service_app, name="service")
app.add_typer(saga_cli.app, name="saga")
saga_cli.app.command("check", epilog=check_cli.EXAMPLE)(check_cli.check)
tx_app = typer.Typer(help="Two-phase commits; transactions of either kind in the log.", no_args_is_help=True)
app.add_typer(tx_app, name="tx")
app.add_typer(message_cli.app, name="message")
app.add_typer(dlq_cli.app, name="dlq")
app.add_typer(schema_cli.app, name="schema")
log_cli.register(app, tx_app)
tx_cli.register(tx_app)

Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
CreateDatabase = Annotated[bool, typer.Option("--create-database", help="Create the database if it is missing.")]
Wait = Annotated[float | None, typer.Option("--wait", min=0, help="Seconds that dependencies may take to answer.")]

_T = TypeVar("_T")
_out = Console()
_err = Console(stderr=True)


@app.command(epilog="Example: fluxora init --wait 120")
def init(as_json: Json = False, create_database: CreateDatabase = False, wait: Wait = None) -> None:
    """Prepare the platform: the coordinator's tables, topics, schemas, slot and connector. Run it as often as you like.

    Reads DATABASE_URL, KAFKA_BOOTSTRAP_SERVERS, CONNECT_URL and SCHEMA_REGISTRY_URL.
    """
    _print_report(_try(lambda: setup.initialise(_settings(wait), create_database=create_database)), as_json)


@service_app.command(
    "add", epilog="Example: fluxora service add billing --database-url postgresql://postgres@127.0.0.1:25432/billing"
)
def service_add(
    name: Annotated[str, typer.Argument(help="The service's name in sagas.")],
    database_url: Annotated[str, typer.Option("--database-url", help="postgresql://user@host:port/name")],
    as_json: Json = False,
    create_database: CreateDatabase = False,
    wait: Wait = None,
) -> None:
    """Give a service its outbox and inbox, slot, connector and command topics. Run it as often as you like.

    Reads KAFKA_BOOTSTRAP_SERVERS and CONNECT_URL.
    """
    report = _try(lambda: setup.add_service(_settings(wait), name, database_url, create_database=create_database))
    _print_report(report, as_json)


@service_app.command("list", epilog="Example: fluxora service list --json")
def service_list(as_json: Json = False) -> None:
    """List the services that sagas can address: those with a command topic."""
    found = _try(lambda: setup.services(_settings(None)))
    if as_json:
        typer.echo(json.dumps(found))
        return
    if not found:
        _err.print("There are no services yet. Add one: fluxora service add NAME --database-url URL")
        return
    table = Table("service", "topic", "partitions")
    for row in found:
        table.add_row(*(str(value) for value in row.values()))
    _out.print(table)


def main() -> None:
    """Entry point of the ``fluxora`` script."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    # Standard output is for what was asked for, and may be JSON.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    # Every retry would be a line; what does not succeed in the end is told once.
    stamina.instrumentation.set_on_retry_hooks([])
    app()


def _settings(wait: float | None) -> CliSettings:
    settings = CliSettings()
    return settings if wait is None else settings.model_copy(update={"wait_s": wait})


def _try(call: Callable[[], _T]) -> _T:
    try:
        return call()
    except setup.EXPECTED as error:
        fail(str(error))


def _print_report(report: setup.Report, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"done": report.done, "unchanged": report.unchanged, "warnings": report.warnings}))
        return
    for what in report.done:
        _out.print(f"[green]made[/green]       {what}")
    for what in report.unchanged:
        _out.print(f"[dim]as it was[/dim]  {what}")
    for warning in report.warnings:
        _err.print(f"[yellow]warning[/yellow]    {warning}")
