"""Commands that read the log: ``fluxora tx history``, ``tx whatif``, ``rebuild``; and those beside, registered."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import orjson
import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape

from fluxora import history as histories
from fluxora.audit_cli import audit
from fluxora.progress import progress_bar
from fluxora.prune_cli import prune
from fluxora.rebuild import SCHEMA, Comparison, Rebuild
from fluxora.replay_cli import replay
from fluxora.settings import CliSettings
from fluxora.trouble import fail, trying
from saga_processors.records import from_ms
from saga_processors.settings import ProcessorSettings
from schemas import Codec, FluxoraError

#: The comparison has found differences.
DIFFERENT = 3

Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
Id = Annotated[str, typer.Argument(help="The transaction's id: of a saga, or of a two-phase commit.")]

_out = Console()


def history(transaction_id: Id, as_json: Json = False) -> None:
    """Show a transaction's inputs, states and effects in order, from the log itself.

    The stored states are not asked, so this shows what must be so, whatever the database says.
    Reads KAFKA_BOOTSTRAP_SERVERS and SCHEMA_REGISTRY_URL.
    """
    folded = histories.fold(_inputs(transaction_id))
    if as_json:
        typer.echo(json.dumps([one.as_json() for one in folded]))
        return
    began = folded[0].input.at
    for one in folded:
        body = {} if one.input.body is None else _told(one.input.type, one.input.body)
        _out.print(
            f"[bold]{one.number:>3}[/]  +{(one.input.at - began) / 1000:.3f} s  [bold]{escape(one.input.type)}[/]  "
            f"{escape(' '.join(f'{k}={v}' for k, v in body.items()))}",
            soft_wrap=True,
            highlight=False,
        )
        colour = {"APPLIED": "green", "IGNORED": "dim"}.get(one.verdict, "red")
        reason = f" ({escape(one.reason)})" if one.reason else ""
        _out.print(
            f"     [{colour}]{one.verdict}[/]{reason} → {one.state or 'nothing'}", soft_wrap=True, highlight=False
        )
        for effect in one.effects:
            _out.print(f"       {escape(orjson.dumps(effect).decode())}", style="dim", soft_wrap=True, highlight=False)
    _out.print(
        f"{from_ms(began).isoformat(timespec='milliseconds')}: {len(folded)} inputs in partition "
        f"{folded[0].input.partition}",
        style="dim",
    )


def whatif(
    transaction_id: Id,
    changes: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="N=JSON", help="Put these fields into input N (numbers as in `tx history`)."),
    ] = None,
    drop: Annotated[list[int] | None, typer.Option("--drop", metavar="N", help="Leave input N out.")] = None,
    definition: Annotated[
        Path | None,
        typer.Option("--definition", help="JSON file with fields for the first input: steps, timeout_ms, ..."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Fold a transaction's history with a change, and print which decisions and commands would differ.

    Nothing is written and nothing is sent. Later inputs stay as they were, also where a service would have answered
    otherwise. Reads KAFKA_BOOTSTRAP_SERVERS and SCHEMA_REGISTRY_URL.
    """
    change = histories.Change(
        {**_fields(changes or []), **dict.fromkeys(drop or [])},
        None if definition is None else _json_object(_read_file(definition), str(definition)),
    )
    if not change.inputs and change.definition is None:
        raise typer.BadParameter("say what changes: --input, --drop or --definition")
    inputs = _inputs(transaction_id)
    before = histories.fold(inputs)
    with trying():
        after = histories.fold(histories.changed(inputs, change))
    lines = histories.difference(before, after)
    ends = {"as_it_was": before[-1].state, "as_it_would_be": after[-1].state if after else None}
    if as_json:
        typer.echo(json.dumps({**ends, "difference": lines}))
        return
    for line in lines:
        colour = {"+": "green", "-": "red", "@": "cyan"}.get(line[:1])
        _out.print(escape(line), style=colour, soft_wrap=True, highlight=False)
    _out.print(
        f"It ended {ends['as_it_was']}; it would have ended {ends['as_it_would_be']}."
        if lines
        else "No decision would differ."
    )


def rebuild(
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare with the live rows; exit 3 if anything differs.")
    ] = False,
    really: Annotated[
        bool, typer.Option("--really", help="Put the result in the place of the live rows. Processors must be stopped.")
    ] = False,
    keep: Annotated[bool, typer.Option("--keep", help=f"Leave the result in schema {SCHEMA}.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="Differences to name.")] = 100,
    as_json: Json = False,
) -> None:
    """Fold the whole log again, beside the live states and journal, and compare the two.

    Without an option nothing live is changed: the result is compared and dropped. Reads DATABASE_URL,
    KAFKA_BOOTSTRAP_SERVERS and SCHEMA_REGISTRY_URL.
    """
    with trying(), Rebuild(_processor_settings(), keep=keep) as run:
        if really:
            run.check_nobody_folds()
        ends = run.snapshot()
        with progress_bar("folding", quiet=as_json) as tell:
            run.fold(ends, tell, whole=really)
        comparison = run.compare(limit)
        if really:
            run.replace(ends)
    _report(comparison, really, keep, as_json)
    if verify and comparison.differences:
        raise typer.Exit(DIFFERENT)


def _report(comparison: Comparison, replaced: bool, kept: bool, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({**asdict(comparison), "replaced": replaced}))
        return
    for one in comparison.differences:
        _out.print(f"[red]different[/]  {escape(one.what)}: {escape(one.how)}", soft_wrap=True, highlight=False)
    if comparison.more:
        _out.print(f"... and {comparison.more} more (--limit)")
    count = len(comparison.differences) + comparison.more
    _out.print(
        f"{comparison.inputs} inputs of {comparison.transactions} transactions folded again: "
        + (f"[red]{count} differences[/]" if count else "[green]no difference[/]"),
        highlight=False,
    )
    if comparison.pruned:
        _out.print(f"{comparison.pruned} others are pruned from the database and were not compared")
    if comparison.begun_before_the_log:
        _out.print(f"{comparison.begun_before_the_log} others began before what the log still holds: not compared")
    if replaced:
        _out.print("The live rows are now what the log says. Start the processors.")
    elif count:
        _out.print("To put what the log says in their place: stop the processors, then `fluxora rebuild --really`.")
    if kept:
        _out.print(f"The result is in schema {SCHEMA}.")


def _inputs(transaction_id: str) -> list[histories.LoggedInput]:
    try:
        id = str(UUID(transaction_id))
    except ValueError:
        raise typer.BadParameter(f"{transaction_id!r} is not a UUID") from None
    settings = CliSettings()
    kafka, registry = settings.kafka_bootstrap_servers, settings.schema_registry_url
    if not kafka or not registry:
        fail("KAFKA_BOOTSTRAP_SERVERS and SCHEMA_REGISTRY_URL are needed; `make up` writes them to .run/endpoints.env")
    codec = Codec(registry)
    try:
        with trying(), progress_bar("reading the log") as tell:
            found = histories.read(kafka, codec, id, tell)
    finally:
        codec.close()
    if not found:
        fail(
            f"the log holds no input of {id}. Its retention may have passed; the journal in the database may still "
            f"tell: SELECT * FROM journal WHERE transaction_id = '{id}'"
        )
    return found


def _told(type: str, body: dict[str, Any]) -> dict[str, str]:
    """An input's fields on one line: those that say something, cut."""
    fields: dict[str, Any] = {
        k: v for k, v in body.items() if v is not None and k not in ("transaction_id", "command_id")
    }
    if "steps" in fields:
        fields["steps"] = [step["name"] for step in fields["steps"]]
    return {k: str(v) if len(str(v)) <= 100 else f"{str(v)[:97]}..." for k, v in fields.items()}


def _fields(changes: list[str]) -> dict[int, dict[str, Any]]:
    result = {}
    for change in changes:
        number, sign, text = change.partition("=")
        if not sign or not number.isdigit():
            raise typer.BadParameter(f'--input is N=JSON, as --input 3=\'{{"outcome": "REFUSED"}}\'; got {change!r}')
        result[int(number)] = _json_object(text, f"--input {number}")
    return result


def _json_object(text: str, what: str) -> dict[str, Any]:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise typer.BadParameter(f"{what} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise typer.BadParameter(f"{what} is not a JSON object")
    return value


def _read_file(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise typer.BadParameter(f"{path}: {error.strerror}") from None


def _processor_settings() -> ProcessorSettings:
    try:
        return ProcessorSettings()
    except ValidationError as error:
        missing = ", ".join(str(problem["loc"][0]) for problem in error.errors())
        raise FluxoraError(f"not set: {missing}; `make up` writes the addresses to .run/endpoints.env") from None


def register(app: typer.Typer, tx_app: typer.Typer) -> None:
    """Put the commands where they belong."""
    app.command(epilog="Example: fluxora rebuild --verify")(rebuild)
    app.command(epilog="Example: fluxora replay fluxora.transactions.events --type '*SagaFailed' --from 1h --send")(
        replay
    )
    app.command(epilog="Example: fluxora audit --from 1h")(audit)
    app.command(epilog="Example: fluxora prune --database billing")(prune)
    tx_app.command(epilog="Example: fluxora tx history 0190c3a2-7d1e-7b4f-9c55-0f2b8f6a1d10")(history)
    tx_app.command(
        epilog='Example: fluxora tx whatif 0190c3a2-7d1e-7b4f-9c55-0f2b8f6a1d10 --input 3=\'{"outcome": "REFUSED"}\''
    )(whatif)
