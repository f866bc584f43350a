"""``fluxora``, for operators and for the supervisor."""

import json
import logging
import sys
from collections.abc import Callable
from typing import Annotated, NoReturn, TypeVar

import stamina
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from fluxora import check_cli, log_cli
from fluxora import init as setup
from fluxora.sagas import SagaClientError, list_sagas, show_saga
from fluxora.settings import CliSettings

#: Exit codes: 1, it did not work; 2, wrong usage (typer's own).
FAILED = 1

app = typer.Typer(
    help="Fluxora Transactions: sagas over PostgreSQL and Kafka.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
service_app = typer.Typer(help="Services that take part in transactions.", no_args_is_help=True)
saga_app = typer.Typer(help="Sagas, over the coordinator's REST API.", no_args_is_help=True)
app.add_typer(service_app, name="service")
app.add_typer(saga_app, name="saga")
saga_app.command("check", epilog=check_cli.EXAMPLE)(check_cli.check)
tx_app = typer.Typer(help="Transactions of either kind, from the log.", no_args_is_help=True)
app.add_typer(tx_app, name="tx")
log_cli.register(app, tx_app)

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


@saga_app.command("list", epilog="Example: fluxora saga list --state COMPENSATING")
def saga_list(
    name: Annotated[str | None, typer.Option(help="Only sagas of this name.")] = None,
    state: Annotated[str | None, typer.Option(help="Only sagas in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=500, help="At most so many.")] = 50,
    as_json: Json = False,
) -> None:
    """List sagas, the newest first. Reads COORDINATOR_URL."""
    found = _try(lambda: list_sagas(_settings(None).coordinator_url, name=name, state=state, limit=limit))
    if as_json:
        typer.echo(json.dumps(found))
        return
    # The id stands whole, to be copied into `saga show`, however narrow the terminal is.
    table = Table(Column("saga", no_wrap=True, min_width=36), "name", "state", "updated")
    for saga in found:
        updated = str(saga.get("updated_at"))[:19].replace("T", " ")
        table.add_row(
            *(escape(str(value)) for value in (saga.get("saga_id"), saga.get("name"), saga.get("state"), updated))
        )
    _out.print(table)


@saga_app.command("show", epilog="Example: fluxora saga show 0190c3a2-7d1e-7b4f-9c55-0f2b8f6a1d10")
def saga_show(
    saga_id: Annotated[str, typer.Argument(help="The saga's id.")],
    as_json: Json = False,
) -> None:
    """Show one saga with its steps. Reads COORDINATOR_URL."""
    saga = _try(lambda: show_saga(_settings(None).coordinator_url, saga_id))
    if as_json:
        typer.echo(json.dumps(saga))
        return
    _out.print(f"[bold]{saga.get('name')}[/bold] {saga.get('saga_id')}: {saga.get('state')}")
    table = Table("step", "service", "state", "attempt", "result or reason")
    for step in saga.get("steps", []):
        told = step.get("reason") or ("" if step.get("result") is None else json.dumps(step["result"]))
        cells = (step.get("id"), step.get("service_name"), step.get("state"), step.get("attempt"), told)
        table.add_row(*(escape(str(cell)) for cell in cells))
    _out.print(table)
    if saga.get("reason"):
        _out.print(f"Why it could not complete: {escape(str(saga['reason']))}")


def main() -> None:
    """Entry point of the ``fluxora`` script."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    # Every retry would be a line; what does not succeed in the end is told once.
    stamina.instrumentation.set_on_retry_hooks([])
    app()


def _settings(wait: float | None) -> CliSettings:
    settings = CliSettings()
    return settings if wait is None else settings.model_copy(update={"wait_s": wait})


def _try(call: Callable[[], _T]) -> _T:
    try:
        return call()
    except (*setup.EXPECTED, SagaClientError) as error:
        _fail(str(error))


def _fail(message: str) -> NoReturn:
    _err.print(f"[red]fluxora:[/red] {escape(message)}", highlight=False, markup=True, soft_wrap=True)
    raise typer.Exit(FAILED)


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
