"""``fluxora replay``."""

import json
import time
from dataclasses import fields
from getpass import getuser
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from fluxora import replay as replays
from fluxora.durations import point_in_time
from fluxora.progress import progress_bar
from fluxora.replay import KEYS_COUNTED, SIDE, Found, Replay, Selection
from fluxora.settings import CliSettings
from fluxora.trouble import fail, trying
from saga_processors.records import from_ms
from schemas import Codec

_out = Console()


def replay(
    topic: Annotated[str, typer.Argument(help="The topic whose records are to come again.")],
    key: Annotated[
        str | None,
        typer.Option("--key", "--transaction", "--aggregate", help="Only this key: a transaction's or aggregate's id."),
    ] = None,
    type: Annotated[str | None, typer.Option("--type", help="Only this type of event; * and ? are wild.")] = None,
    since: Annotated[
        str | None, typer.Option("--from", help="From this time on: RFC 3339, or 15m, 2h, 1d ago.")
    ] = None,
    until: Annotated[str | None, typer.Option("--to", help="Before this time; likewise.")] = None,
    offsets: Annotated[
        list[str] | None, typer.Option("--offsets", metavar="P:FIRST-LAST", help="Only these; may be repeated.")
    ] = None,
    send: Annotated[bool, typer.Option("--send", help="Send copies to the side topic.")] = False,
    really: Annotated[bool, typer.Option("--really", help="Send copies to the topic itself.")] = False,
    to_topic: Annotated[str | None, typer.Option("--to-topic", help=f"The side topic; default TOPIC{SIDE}.")] = None,
    rate: Annotated[float | None, typer.Option(min=0.1, help="Records a second, at most; default 1000.")] = 1000,
    no_limit: Annotated[bool, typer.Option("--no-rate-limit", help="As fast as the brokers take them.")] = False,
    who: Annotated[str | None, typer.Option(help="Who does this, for the audit; default: you.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")] = False,
) -> None:
    """Send records of a topic once more. Without --send or --really it only says what would be sent.

    Copies keep key, value, partition, timestamp and headers, ids among them, and get the header replay-id; consumers
    with an inbox drop what they have done already. Each replay leaves a row in the table replays.
    Reads KAFKA_BOOTSTRAP_SERVERS, SCHEMA_REGISTRY_URL and, when it sends, DATABASE_URL.
    """
    settings = CliSettings()
    if not settings.kafka_bootstrap_servers:
        fail("KAFKA_BOOTSTRAP_SERVERS is not set; `make up` writes it to .run/endpoints.env")
    if really and to_topic:
        raise typer.BadParameter("--really sends to the topic itself; --to-topic names another one: give one of them")
    with trying():
        selection = Selection(
            key=key,
            type=type,
            since=None if since is None else _ms(since),
            until=None if until is None else _ms(until),
            offsets=replays.parse_offsets(offsets or []),
        )
        codec = None if settings.schema_registry_url is None else Codec(settings.schema_registry_url)
        try:
            with Replay(settings.kafka_bootstrap_servers, topic, selection, codec) as run:
                sending = send or really
                target = (topic if really else to_topic or f"{topic}{SIDE}") if sending else None
                if target is None:
                    with progress_bar("looking", quiet=as_json) as tell:
                        for _ in run.records(tell):
                            pass
                    sent = None
                else:
                    sent = _send(settings, run, topic, target, selection, who, None if no_limit else rate, as_json)
        finally:
            if codec is not None:
                codec.close()
    _report(run, run.found, target, sent, as_json)


def _send(
    settings: CliSettings,
    run: Replay,
    topic: str,
    target: str,
    selection: Selection,
    who: str | None,
    rate: float | None,
    quiet: bool,
) -> int:
    if not settings.database_url:
        fail("DATABASE_URL is not set: a replay leaves an audit row. `make up` writes it to .run/endpoints.env")
    replays.record_begin(settings.database_url, run, topic, target, selection, who or getuser())
    sent = 0
    error: str | None = "broken off"
    try:
        with progress_bar("sending", quiet=quiet) as tell:
            sent = run.send(target, tell, rate)
        error = None
    except Exception as problem:
        error = str(problem)
        raise
    finally:
        replays.record_end(settings.database_url, run, sent, error)
    return sent


def _report(run: Replay, found: Found, target: str | None, sent: int | None, as_json: bool) -> None:
    if as_json:
        counts = {f.name: getattr(found, f.name) for f in fields(found)}
        told = counts | {"replay_id": None if target is None else run.id, "target": target, "sent": sent}
        typer.echo(json.dumps(told))
        return
    if not found.matched:
        _out.print(f"Nothing matches among {found.looked_at} records; nothing was sent.")
        return
    for name, count in found.types.most_common():
        _out.print(f"  {count:>8}  {escape(name)}", highlight=False)
    assert found.first_at is not None and found.last_at is not None
    keys = f"{found.keys} or more" if found.keys == KEYS_COUNTED else found.keys
    _out.print(
        f"{found.matched} of {found.looked_at} records match, with {keys} keys, from "
        f"{from_ms(found.first_at).isoformat(timespec='seconds')} to "
        f"{from_ms(found.last_at).isoformat(timespec='seconds')}"
        + (f"; {found.copies} copies of earlier replays were left out" if found.copies else ""),
        highlight=False,
    )
    if target is None:
        _out.print("Nothing was sent. --send copies them to a side topic, --really to the topic itself.")
    else:
        _out.print(f"[green]{sent} copies sent[/] to {escape(target)}, replay-id {run.id}", highlight=False)


def _ms(text: str) -> int:
    return round(point_in_time(text, time.time()) * 1000)
