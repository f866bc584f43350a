"""``fluxora saga``: sagas over the coordinator's REST API."""

import getpass
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table
from rich.text import Text

from fluxora.settings import CliSettings
from fluxora.timeline import Timeline, duration, timeline
from fluxora.trouble import FAILED, fail
from participant.saga_client import CallFailed, NotEnded, SagaClient, SagaStatus

#: A history longer than this is cut when it is drawn; --json has the whole of it page by page.
_DRAWN_ENTRIES = 2000
_PAGE = 500

app = typer.Typer(help="Sagas, over the coordinator's REST API.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
Id = Annotated[str, typer.Argument(help="The saga's id.")]
Who = Annotated[str | None, typer.Option("--who", help="Who asks, for the journal; default: your user's name.")]
Why = Annotated[str | None, typer.Option("--why", help="Why, for the journal.")]

_out = Console()
_err = Console(stderr=True)


@app.command("list", epilog="Example: fluxora saga list --state COMPENSATING --older-than 5m")
def list_(
    name: Annotated[str | None, typer.Option(help="Only sagas of this name.")] = None,
    state: Annotated[list[str] | None, typer.Option(help="Only sagas in this state; may be repeated.")] = None,
    service: Annotated[str | None, typer.Option(help="Only sagas with a step at this service.")] = None,
    older_than: Annotated[str | None, typer.Option(help="Only sagas started longer ago: 30s, 5m, 2h, 1d.")] = None,
    younger_than: Annotated[str | None, typer.Option(help="Only sagas started since: 30s, 5m, 2h, 1d.")] = None,
    attention: Annotated[bool, typer.Option("--attention", help="Only sagas that need attention.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=500, help="At most so many.")] = 50,
    as_json: Json = False,
) -> None:
    """List sagas, the newest first. Reads COORDINATOR_URL."""
    with _client() as sagas:
        found = sagas.list_sagas(
            name=name,
            state=state or None,
            service=service,
            older_than=older_than,
            younger_than=younger_than,
            needs_attention="true" if attention else None,
            limit=limit,
        )["sagas"]
    if as_json:
        typer.echo(json.dumps(found))
        return
    # The id stands whole, to be copied into `saga show`, however narrow the terminal is.
    table = Table(Column("saga", no_wrap=True, min_width=36), "name", "state", "updated")
    for saga in found:
        state_told = f"{saga['state']} (!)" if saga["needs_attention"] else saga["state"]
        updated = str(saga["updated_at"])[:19].replace("T", " ")
        table.add_row(*(escape(str(cell)) for cell in (saga["saga_id"], saga["name"], state_told, updated)))
    _out.print(table)


@app.command(epilog="Example: fluxora saga show 0190c3a2-7d1e-7b4f-9c55-0f2b8f6a1d10 --wait 30s")
def show(
    saga_id: Id,
    wait: Annotated[
        str | None, typer.Option("--wait", help="First wait for its end, at most this long: 30s, 500ms, 5m.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Draw one saga over time: each step, attempt, answer and wait. Reads COORDINATOR_URL.

    With --wait, exits with 1 if the saga has not ended by then; it is drawn all the same.
    """
    seconds = None if wait is None else _seconds(wait)
    ended = True
    with _client() as sagas:
        try:
            saga = sagas.get_saga_status(saga_id) if seconds is None else sagas.wait(saga_id, seconds)
        except NotEnded as error:
            saga, ended = error.saga, False
        history, whole = _history(sagas, saga_id)
    if as_json:
        typer.echo(orjson.dumps({**saga, "history": history}).decode())
    else:
        draw(saga, timeline(saga, history, datetime.now(UTC)), _out)
        if not whole:
            _err.print(f"Only the first {len(history)} inputs are drawn; `fluxora tx history` has all.")
    if not ended:
        raise typer.Exit(FAILED)


@app.command(epilog="Example: fluxora saga cancel 0190c3a2-7d1e-7b4f-9c55-0f2b8f6a1d10 --why 'ordered twice'")
def cancel(saga_id: Id, who: Who = None, why: Why = None, as_json: Json = False) -> None:
    """Turn a saga round: what has run is undone. Refused past its pivot. Reads COORDINATOR_URL."""
    with _client() as sagas:
        _print_saga(sagas.cancel(saga_id, who=who or _user(), why=why), as_json)


@app.command(epilog="Example: fluxora saga retry 0190c3a2-7d1e-7b4f-9c55-0f2b8f6a1d10 --step bill")
def retry(
    saga_id: Id,
    step: Annotated[str | None, typer.Option(help="Only this step; default: all that wait.")] = None,
    who: Who = None,
    why: Why = None,
    as_json: Json = False,
) -> None:
    """Make the attempts that wait for their time now. Reads COORDINATOR_URL."""
    with _client() as sagas:
        _print_saga(sagas.retry(saga_id, step, who=who or _user(), why=why), as_json)


@app.command(epilog="Example: fluxora saga skip 0190c3a2-7d1e-7b4f-9c55-0f2b8f6a1d10 bill --why 'billed by hand'")
def skip(
    saga_id: Id,
    step: Annotated[
        str | None,
        typer.Argument(
            help="The step whose action, or compensation, is taken for done; default: the only one at work."
        ),
    ] = None,
    who: Who = None,
    why: Why = None,
    as_json: Json = False,
) -> None:
    """Take a step that is stuck for done: its action, or its compensation. Reads COORDINATOR_URL."""
    with _client() as sagas:
        _print_saga(sagas.skip(saga_id, step, who=who or _user(), why=why), as_json)


@app.command(epilog="Example: fluxora saga unpark 0190c3a2-7d1e-7b4f-9c55-0f2b8f6a1d10 --why 'fixed in 1.4.1'")
def unpark(saga_id: Id, who: Who = None, why: Why = None, as_json: Json = False) -> None:
    """Fold what was queued behind an input that could not be folded, once that is mended. Reads COORDINATOR_URL."""
    with _client() as sagas:
        _print_saga(sagas.unpark(saga_id, who=who or _user(), why=why), as_json)


@app.command(epilog="Example: fluxora saga definitions order")
def definitions(
    name: Annotated[str | None, typer.Argument(help="Only the versions of this definition.")] = None,
    as_json: Json = False,
) -> None:
    """List registered definitions, the newest first. Reads COORDINATOR_URL."""
    with _client() as sagas:
        found = sagas.definitions(name)["definitions"]
    if as_json:
        typer.echo(json.dumps(found))
        return
    table = Table("name", "version", "registered", "steps", "description")
    for one in found:
        registered = str(one["created_at"])[:19].replace("T", " ")
        steps = ", ".join(one["steps"])
        table.add_row(
            *(escape(str(c)) for c in (one["name"], one["version"], registered, steps, one["description"] or ""))
        )
    _out.print(table)


def draw(saga: SagaStatus, drawn: Timeline, console: Console) -> None:
    """Print a saga: its state, a bar for each step, and what happened in order."""
    tone = {"COMPLETED": "green", "FAILED": "red", "COMPENSATING": "yellow"}.get(saga["state"], "cyan")
    version = "" if saga["version"] is None else f" version {saga['version']}"
    head = Text.assemble((saga["name"], "bold"), version, f"  {saga['saga_id']}")
    verdict = Text.assemble((saga["state"], tone), f" after {duration(drawn.seconds)}")
    if saga["needs_attention"]:
        verdict.append("  needs attention", "bold yellow")
    console.print(head)
    console.print(verdict)
    if saga["reason"]:
        console.print(Text(f"because {saga['reason']}"))
    _draw_bars(saga, drawn, console)
    _draw_moments(drawn, console)


def _draw_bars(saga: SagaStatus, drawn: Timeline, console: Console) -> None:
    names = max(len(step["id"]) for step in saga["steps"])
    names = min(names, console.width // 4)
    width = max(10, console.width - names - len("COMPENSATING") - 4)
    console.print()
    for step in saga["steps"]:
        state = f"{step['state']}, skipped" if step["skipped"] else step["state"]
        console.print(
            Text.assemble(
                (step["id"][:names].ljust(names), "bold"),
                "  ",
                (drawn.bar(step["id"], width - (len(", skipped") if step["skipped"] else 0)), "cyan"),
                f"  {state}",
            ),
            no_wrap=True,
            overflow="crop",
        )
    console.print(Text("━ action  ◂ compensation  · waits", "dim"))


def _draw_moments(drawn: Timeline, console: Console) -> None:
    console.print()
    table = Table.grid(
        Column(justify="right", no_wrap=True),
        Column(max_width=console.width // 4, overflow="ellipsis", no_wrap=True),
        Column(overflow="fold"),
        padding=(0, 2, 0, 0),
    )
    for moment in drawn.moments:
        at = f"+{duration(moment.at)}"
        table.add_row(Text(at, "dim"), Text(moment.step or "", "bold"), Text(moment.what, moment.tone.value))
    console.print(table)


def _history(sagas: SagaClient, saga_id: str) -> tuple[list[dict[str, Any]], bool]:
    """The saga's history, as far as it is drawn, and whether that is all."""
    entries: list[dict[str, Any]] = []
    cursor: str | None = None
    while len(entries) < _DRAWN_ENTRIES:
        page = sagas.history(saga_id, cursor=cursor, limit=_PAGE)
        entries += page["entries"]
        cursor = page["next_cursor"]
        if cursor is None:
            return entries, True
    return entries, False


def _print_saga(saga: SagaStatus, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(saga))
        return
    _out.print(f"[bold]{escape(saga['name'])}[/bold] {saga['saga_id']}: {saga['state']}", highlight=False)


@contextmanager
def _client() -> Iterator[SagaClient]:
    """The client; its errors end the command with their message."""
    url = CliSettings().coordinator_url
    if not url:
        fail("COORDINATOR_URL is not set; `make up` writes it to .run/endpoints.env: source that, or set it")
    try:
        # An operator sees at once that nobody answers, and may try again.
        with SagaClient("fluxora-cli", url, timeout_seconds=30.0, retry_seconds=3.0) as client:
            yield client
    except CallFailed as error:
        fail(str(error))


_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(ms|s|m|h|d)?", re.ASCII)
_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, None: 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def _seconds(text: str) -> float:
    found = _DURATION.fullmatch(text)
    if found is None:
        raise typer.BadParameter("is a time such as 30s, 500ms or 5m", param_hint="--wait")
    return float(found[1]) * _UNIT_SECONDS[found[2]]


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return "unknown"
