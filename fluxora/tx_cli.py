"""``fluxora tx list|show|commit|abort|unpark|indoubt``: two-phase commits over the coordinator's REST API."""

import getpass
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated, Any
from uuid import uuid4

import orjson
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table
from rich.text import Text

from fluxora.settings import CliSettings
from fluxora.trouble import fail
from participant.rest import CallFailed, RestClient

#: A history longer than this is cut when it is drawn; `fluxora tx history` has all.
_DRAWN_ENTRIES = 2000
_PAGE = 500

Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
Id = Annotated[str, typer.Argument(help="The transaction's id.")]
Who = Annotated[str | None, typer.Option("--who", help="Who asks, for the journal; default: your user's name.")]
Why = Annotated[str | None, typer.Option("--why", help="Why, for the journal.")]
Limit = Annotated[int, typer.Option(min=1, max=500, help="At most so many.")]

_TONES = {"COMMITTED": "green", "ABORTED": "red", "FAILED": "red", "COMMITTING": "yellow", "ABORTING": "yellow"}
_VERDICT_TONES = {"APPLIED": "", "IGNORED": "dim"}

_out = Console()
_err = Console(stderr=True)


def list_(
    state: Annotated[list[str] | None, typer.Option(help="Only those in this state; may be repeated.")] = None,
    participant: Annotated[str | None, typer.Option(help="Only those with this participant.")] = None,
    older_than: Annotated[str | None, typer.Option(help="Only those begun longer ago: 30s, 5m, 2h, 1d.")] = None,
    younger_than: Annotated[str | None, typer.Option(help="Only those begun since: 30s, 5m, 2h, 1d.")] = None,
    attention: Annotated[bool, typer.Option("--attention", help="Only those that need attention.")] = False,
    limit: Limit = 50,
    as_json: Json = False,
) -> None:
    """List two-phase commits, the newest first. Reads COORDINATOR_URL."""
    query = {
        "state": state or None,
        "participant": participant,
        "older_than": older_than,
        "younger_than": younger_than,
        "needs_attention": "true" if attention else None,
        "limit": limit,
    }
    with _client() as rest:
        _print_list(_found(rest, query), as_json)


def indoubt(
    older_than: Annotated[
        str, typer.Option(help="How long ago one must have begun to count as in doubt: 30s, 5m, 2h.")
    ] = "5m",
    limit: Limit = 50,
    as_json: Json = False,
) -> None:
    """List two-phase commits that a participant keeps from ending: those that need attention, and those that are
    decided, and have begun long ago, and have not ended. Reads COORDINATOR_URL.

    They go on by themselves as soon as the participant answers; nothing has to be done here.
    """
    with _client() as rest:
        found = _found(rest, {"needs_attention": "true", "limit": limit})
        found += _found(rest, {"state": ["COMMITTING", "ABORTING"], "older_than": older_than, "limit": limit})
    once = {one["transaction_id"]: one for one in found}
    oldest_first = sorted(once.values(), key=lambda one: str(one["created_at"]))
    _print_list(oldest_first[:limit], as_json)


def show(transaction_id: Id, as_json: Json = False) -> None:
    """Show one two-phase commit: its participants, and what happened in order. Reads COORDINATOR_URL."""
    with _client() as rest:
        transaction = rest.call("GET", f"/transactions/{transaction_id}")
        history, whole = _history(rest, transaction_id)
    if as_json:
        typer.echo(orjson.dumps({**transaction, "history": history}).decode())
        return
    draw(transaction, history, _out)
    if not whole:
        _err.print(f"Only the first {len(history)} inputs are drawn; `fluxora tx history` has all.")


def commit(transaction_id: Id, who: Who = None, why: Why = None, as_json: Json = False) -> None:
    """Commit a two-phase commit that is PREPARED. Reads COORDINATOR_URL."""
    _decide(transaction_id, "commit", who, why, as_json)


def abort(transaction_id: Id, who: Who = None, why: Why = None, as_json: Json = False) -> None:
    """Abort a two-phase commit that is not decided. Reads COORDINATOR_URL."""
    _decide(transaction_id, "abort", who, why, as_json)


def unpark(transaction_id: Id, who: Who = None, why: Why = None, as_json: Json = False) -> None:
    """Fold what was queued behind an input that could not be folded, once that is mended. Reads COORDINATOR_URL."""
    _decide(transaction_id, "unpark", who, why, as_json)


def register(tx_app: typer.Typer) -> None:
    """Put the commands into the group ``tx``."""
    id = "0190c3a2-7d1e-7b4f-9c55-0f2b8f6a1d10"
    tx_app.command("list", epilog="Example: fluxora tx list --state PREPARED --older-than 5m")(list_)
    tx_app.command(epilog=f"Example: fluxora tx show {id}")(show)
    tx_app.command(epilog=f"Example: fluxora tx commit {id} --why 'approved by hand'")(commit)
    tx_app.command(epilog=f"Example: fluxora tx abort {id} --why 'the client is gone'")(abort)
    tx_app.command(epilog=f"Example: fluxora tx unpark {id} --why 'fixed in 1.4.1'")(unpark)
    tx_app.command(epilog="Example: fluxora tx indoubt --older-than 1m")(indoubt)


def draw(transaction: Mapping[str, Any], history: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Print a two-phase commit: its state, its participants, and what happened to it in order."""
    console.print(Text.assemble(("two-phase commit", "bold"), f"  {transaction['transaction_id']}"))
    head = Text(transaction["state"], _TONES.get(transaction["state"], "cyan"))
    if transaction["needs_attention"]:
        head.append("  needs attention", "bold yellow")
    console.print(head)
    if transaction["reason"]:
        console.print(Text(f"because {transaction['reason']}"))
    table = Table("participant", "reached over", "state", "attempt", "reason")
    for one in transaction["participants"]:
        over = one["service_url"] or one["transport"].lower()
        state = Text(one["state"], _TONES.get(one["state"], ""))
        table.add_row(
            escape(one["service_name"]), escape(over), state, str(one["attempt"]), escape(one["reason"] or "")
        )
    if transaction["participants"]:
        console.print(table)
    lines = Table.grid(Column(justify="right", no_wrap=True), Column(overflow="fold"), padding=(0, 2, 0, 0))
    began: datetime | None = None
    for entry in history:
        at = datetime.fromisoformat(entry["at"])
        began = began or at
        lines.add_row(
            Text(f"+{(at - began).total_seconds():.3f}s", "dim"),
            Text(_told(entry), _VERDICT_TONES.get(entry["verdict"], "red")),
        )
        for effect in entry["effects"]:
            if "publish" not in effect:
                lines.add_row("", Text(f"→ {_effect(effect)}", "dim"))
    console.print(lines)


def _told(entry: Mapping[str, Any]) -> str:
    """One input in a line: what came, from whom, and what was made of it."""
    told: Mapping[str, Any] = entry["input"] or {}
    match entry["type"].removeprefix("fluxora."):
        case "TransactionStarted":
            what = "begun"
        case "RequestMade":
            what = str(told["request"]).lower().replace("_", " ") + " requested"
            if told.get("participant"):
                what += f": {told['participant']['service_name']}"
            what += "".join(f", {name} {told[name]}" for name in ("who", "why") if told.get(name))
        case "ParticipantReplied":
            what = f"{told['participant']} answers {str(told['operation']).lower()}: {told['outcome']}"
            if told.get("reason"):
                what += f" ({told['reason']})"
        case "DeadlinePassed":
            what = "a time is over"
        case other:
            what = other
    if entry["verdict"] != "APPLIED":
        return f"{what}: {entry['verdict']}" + (f", {entry['reason']}" if entry["reason"] else "")
    return f"{what}: {entry['state']}"


def _effect(effect: Mapping[str, Any]) -> str:
    if "ask" in effect:
        return f"{effect['ask'].lower()} {effect['attempt']} to {effect['participant']}"
    return orjson.dumps(effect).decode()


def _decide(transaction_id: str, verb: str, who: str | None, why: str | None, as_json: bool) -> None:
    with _client() as rest:
        # With a key it is in the log once, however often it is sent until it is answered.
        reply = rest.reply(
            "POST", f"/transactions/{transaction_id}/{verb}", {"who": who or _user(), "why": why}, key=str(uuid4())
        )
    if as_json:
        typer.echo(orjson.dumps(reply.document).decode())
        return
    _out.print(f"{reply.document['transaction_id']}: {reply.document['state']}", highlight=False)
    if reply.status == 202:
        _err.print(f"The {verb} is in the log and not decided yet; look again with `fluxora tx show`.")


def _found(rest: RestClient, query: Mapping[str, Any]) -> list[dict[str, Any]]:
    given = {name: value for name, value in query.items() if value is not None}
    return list(rest.call("GET", "/transactions", query=given)["transactions"])


def _history(rest: RestClient, transaction_id: str) -> tuple[list[dict[str, Any]], bool]:
    """The history, as far as it is drawn, and whether that is all."""
    entries: list[dict[str, Any]] = []
    query: dict[str, Any] = {"limit": _PAGE}
    while len(entries) < _DRAWN_ENTRIES:
        page = rest.call("GET", f"/transactions/{transaction_id}/history", query=query)
        entries += page["entries"]
        if page["next_cursor"] is None:
            return entries, True
        query["cursor"] = page["next_cursor"]
    return entries, False


def _print_list(found: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    if as_json:
        typer.echo(orjson.dumps(found).decode())
        return
    # The id stands whole, to be copied into `tx show`, however narrow the terminal is.
    table = Table(Column("transaction", no_wrap=True, min_width=36), "state", "participants", "updated")
    for one in found:
        state = f"{one['state']} (!)" if one["needs_attention"] else one["state"]
        updated = str(one["updated_at"])[:19].replace("T", " ")
        cells = (one["transaction_id"], state, ", ".join(one["participants"]), updated)
        table.add_row(*(escape(str(cell)) for cell in cells))
    _out.print(table)


@contextmanager
def _client() -> Iterator[RestClient]:
    """The client; its errors end the command with their message."""
    url = CliSettings().coordinator_url
    if not url:
        fail("COORDINATOR_URL is not set; `make up` writes it to .run/endpoints.env: source that, or set it")
    try:
        # An operator sees at once that nobody answers, and may try again.
        with RestClient(url, "fluxora-cli", timeout_seconds=30.0, retry_seconds=3.0) as client:
            yield client
    except CallFailed as error:
        fail(str(error))


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return "unknown"
