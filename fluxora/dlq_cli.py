"""``fluxora dlq``."""

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fluxora import dead_letters
from fluxora.dead_letters import DeadLetters
from fluxora.replay import parse_offsets
from fluxora.settings import CliSettings
from fluxora.trouble import fail, trying
from saga_processors.records import from_ms

app = typer.Typer(help="Dead letters: records that nobody could handle.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
Topic = Annotated[str, typer.Argument(help="The dead letter topic; see `fluxora dlq list`.")]
Offsets = Annotated[
    list[str] | None, typer.Option("--offsets", metavar="P:FIRST-LAST", help="Only these; may be repeated.")
]
_out = Console()


@app.command("list", epilog="Example: fluxora dlq list")
def list_topics(as_json: Json = False) -> None:
    """List the dead letter topics and how many letters each holds. Reads KAFKA_BOOTSTRAP_SERVERS."""
    with trying():
        found = dead_letters.topics(_kafka())
    if as_json:
        typer.echo(json.dumps([{"topic": one.topic, "letters": one.letters} for one in found]))
        return
    table = Table("topic", "letters")
    for one in found:
        table.add_row(escape(one.topic), _count(one))
    _out.print(table)


def _count(one: DeadLetters) -> str:
    return f"[red]{one.letters}[/]" if one.letters else "0"


@app.command(epilog="Example: fluxora dlq show fluxora.transactions.dlq --limit 5")
def show(
    topic: Topic,
    offsets: Offsets = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, the newest.")] = 50,
    as_json: Json = False,
) -> None:
    """Show letters: where each came from, and what was wrong with it. Reads KAFKA_BOOTSTRAP_SERVERS."""
    with trying():
        ranges = dead_letters.held(_kafka(), topic, parse_offsets(offsets or []))
        found = dead_letters.newest(dead_letters.letters(_kafka(), topic, ranges), limit)
    if as_json:
        typer.echo(json.dumps([letter.as_json() for letter in found]))
        return
    for letter in found:
        _out.print(
            f"[bold]{letter.partition}:{letter.offset}[/]  {from_ms(letter.at).isoformat(timespec='seconds')}  "
            f"key {escape(str(letter.key))}, {letter.bytes} bytes, was "
            f"{escape(str(letter.from_topic))}\\[{letter.from_partition}] {letter.from_offset}",
            highlight=False,
            soft_wrap=True,
        )
        _out.print(f"    [red]{escape(letter.error)}[/]: {escape(letter.message)}", highlight=False, soft_wrap=True)
    _out.print(f"{len(found)} letters")


@app.command(epilog="Example: fluxora dlq redrive billing.commands.dlq --offsets 0:3-5 --send")
def redrive(
    topic: Topic,
    offsets: Offsets = None,
    send: Annotated[bool, typer.Option("--send", help="Send them; without it they are only counted.")] = False,
    as_json: Json = False,
) -> None:
    """Send letters back to the topics they came from, once the cause is mended. The letters stay.

    Copies of what was handled meanwhile are dropped by their ids. Without --send nothing is sent.
    Reads KAFKA_BOOTSTRAP_SERVERS.
    """
    with trying():
        # Read twice rather than kept: all are checked before the first is sent.
        ranges = dead_letters.held(_kafka(), topic, parse_offsets(offsets or []))
        count = dead_letters.check(dead_letters.letters(_kafka(), topic, ranges))
        id, sent = None, 0
        if send and count:
            id, sent = dead_letters.redrive(_kafka(), dead_letters.letters(_kafka(), topic, ranges))
    if as_json:
        typer.echo(json.dumps({"letters": count, "sent": sent, "redrive_id": id}))
    elif id is None:
        _out.print(f"{count} letters match; nothing was sent" + (" (--send sends them)." if count else "."))
    else:
        _out.print(f"[green]{sent} records sent back[/], redrive-id {id}", highlight=False)


def _kafka() -> str:
    servers = CliSettings().kafka_bootstrap_servers
    if not servers:
        fail("KAFKA_BOOTSTRAP_SERVERS is not set; `make up` writes it to .run/endpoints.env")
    return servers
