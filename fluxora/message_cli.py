"""``fluxora message``: messages of the Outbox Service, over its REST API."""

import json
import os
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from fluxora.trouble import fail
from participant.outbox_client import Conflict, OutboxClient
from schemas import FluxoraError

app = typer.Typer(help="Messages, over the Outbox Service's REST API (OUTBOX_URL).", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]

_T = TypeVar("_T")
_out = Console()
_err = Console(stderr=True)
_SENDER = "fluxora-cli"


@app.command("send", epilog="""Example: fluxora message send billing '{"order": 7}' --key customer-3""")
def send(
    destination: Annotated[str, typer.Argument(help="The service it is for.")],
    payload: Annotated[str, typer.Argument(help="Any JSON; the receiver gets it with its sender.")],
    key: Annotated[str | None, typer.Option(help="Messages of one key stay in order.")] = None,
    type: Annotated[str | None, typer.Option(help="For routing rules and receivers.")] = None,
    sender: Annotated[str, typer.Option(help="Who sends it.")] = _SENDER,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait until it is delivered.")] = 0,
    as_json: Json = False,
) -> None:
    """Send a message. Reads OUTBOX_URL."""
    try:
        content = json.loads(payload)
    except ValueError as error:
        fail(f"PAYLOAD is not JSON: {error}. A text stands in quotes: '\"text\"'")

    def work(client: OutboxClient) -> Any:
        sent = client.send_message(destination, content, key=key, type=type)
        if wait:
            return client.wait(sent.message_id, wait)
        return {"message_id": sent.message_id, "status": sent.status}

    told = _with(work, sender)
    if as_json:
        typer.echo(json.dumps(told))
        return
    typer.echo(f"{told['message_id']} {told['status']}")


@app.command("list", epilog="Example: fluxora message list --status FAILED --destination billing")
def list_(
    destination: Annotated[str | None, typer.Option(help="Only those for this service.")] = None,
    status: Annotated[str | None, typer.Option(help="Only PENDING, DELIVERED or FAILED ones.")] = None,
    type: Annotated[str | None, typer.Option(help="Only those of this type.")] = None,
    older_than: Annotated[str | None, typer.Option(help="Only older ones, as 10m.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="At most so many.")] = 50,
    as_json: Json = False,
) -> None:
    """List messages, the newest first. Reads OUTBOX_URL."""
    filters = {"destination": destination, "status": status, "type": type, "older_than": older_than}
    found = _with(lambda client: list(islice(_listed(client, filters, limit), limit)))
    if as_json:
        typer.echo(json.dumps(found))
        return
    # The id stands whole, to be copied into `message show`, however narrow the terminal is.
    table = Table(Column("message", no_wrap=True, min_width=36), "destination", "key", "status", "failed", "last error")
    for message in found:
        cells = (message[name] for name in ("message_id", "destination_service", "key", "status", "retry_count"))
        table.add_row(
            *(escape("" if cell is None else str(cell)) for cell in cells), escape(message["last_error"] or "")
        )
    _out.print(table)


@app.command("show", epilog="Example: fluxora message show 0190c3a2-7d1e-7b4f-9c55-0f2b8f6a1d10")
def show(message_id: Annotated[str, typer.Argument(help="The message's id.")], as_json: Json = False) -> None:
    """Show one message with its payload. Reads OUTBOX_URL."""
    message = _with(lambda client: client.get_message(message_id))
    if as_json:
        typer.echo(json.dumps(message))
        return
    for name, value in message.items():
        told = json.dumps(value, ensure_ascii=False) if name == "payload" else "" if value is None else str(value)
        _out.print(f"[bold]{name}[/bold]: {escape(told)}", highlight=False, soft_wrap=True)


@app.command("redeliver", epilog="Example: fluxora message redeliver --destination billing")
def redeliver(
    message_ids: Annotated[list[str] | None, typer.Argument(help="Ids of FAILED messages.")] = None,
    destination: Annotated[str | None, typer.Option(help="Instead of ids: all FAILED ones for this service.")] = None,
    type: Annotated[str | None, typer.Option(help="With --destination: only those of this type.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000_000, help="With --destination: at most so many.")] = 10_000,
    as_json: Json = False,
) -> None:
    """Send FAILED messages again, with the same ids, in the order in which they were accepted. Reads OUTBOX_URL."""
    if bool(message_ids) == bool(destination):
        fail("give ids of messages, or --destination")

    def work(client: OutboxClient) -> list[dict[str, str]]:
        ids: list[str] = list(message_ids or ())
        if destination:
            filters = {"destination": destination, "type": type, "status": "FAILED"}
            ids = [message["message_id"] for message in _listed(client, filters, 500)][::-1][:limit]
        return [_again(client, id, skip=bool(destination)) for id in ids]

    done = _with(work)
    if as_json:
        typer.echo(json.dumps(done))
        return
    for one in done:
        typer.echo(f"{one['message_id']} {one['status']}")
    if not done:
        _err.print("There is no FAILED message of that kind.")


def _again(client: OutboxClient, message_id: str, *, skip: bool) -> dict[str, str]:
    try:
        sent = client.redeliver(message_id)
    except Conflict as error:
        if not skip:
            raise
        return {"message_id": message_id, "status": error.state or "unknown"}  # somebody else was quicker
    return {"message_id": sent.message_id, "status": sent.status}


def _listed(client: OutboxClient, filters: dict[str, Any], limit: int) -> Iterable[dict[str, Any]]:
    return client.list_messages(limit=min(limit, 500), **filters)


def _with(work: Callable[[OutboxClient], _T], sender: str = _SENDER) -> _T:
    if not os.environ.get("OUTBOX_URL"):
        fail("OUTBOX_URL is not set; `make up` writes it to .run/endpoints.env: source that, or set it")
    try:
        with OutboxClient(sender) as client:
            return work(client)
    except FluxoraError as error:
        fail(str(error))
