"""``fluxora saga check``: everything that can happen to a user's saga, before any of it does."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from fluxora.blueprints import example_of, load, plan
from saga_processors.explorer import ATTEMPTS, MAX_STATES, Progress, Report, explore
from saga_processors.findings import findings
from schemas import FluxoraError

FAILED = 1
EXAMPLE = "Example: fluxora saga check examples.energy.definitions:settle_day"

_out = Console()
_err = Console(stderr=True)


def check(
    target: Annotated[str, typer.Argument(help="module:attribute of a Definition, a list of steps, or a document.")],
    input: Annotated[
        str | None, typer.Option("--input", help="The saga's input, JSON; default: the definition's example.")
    ] = None,
    max_states: Annotated[int, typer.Option("--max-states", min=1, help="Stop after so many states.")] = MAX_STATES,
    attempts: Annotated[
        int, typer.Option("--attempts", min=1, max=5, help="Attempts of one operation that may go wrong.")
    ] = ATTEMPTS,
    keyless: Annotated[
        bool, typer.Option("--keyless", help="HTTP services do not honour the Idempotency-Key.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")] = False,
) -> None:
    """Walk every reachable combination of answers, refusals, losses, duplicates, timeouts and crashes of your saga.

    Needs no platform. Exits 1 if the saga cannot be run, if a rule is broken, or if a bound was hit before all of it
    was walked.
    """
    try:
        blueprint = load(target)
        given = example_of(blueprint) if input is None else json.loads(input)
        definition = plan(blueprint, given)
    except ValueError as error:
        _fail(f"--input is no JSON: {error}", as_json)
    except FluxoraError as error:
        _fail(str(error), as_json)
    began = time.monotonic()
    with _progress(quiet=as_json) as progress:
        report = explore(
            definition, attempts=attempts, max_states=max_states, honours_key=not keyless, progress=progress
        )
    seconds = time.monotonic() - began
    hints = findings(definition)
    if as_json:
        typer.echo(json.dumps(_document(report, hints, seconds)))
    else:
        _print(report, hints, seconds)
    if not (report.ok and report.complete):
        raise typer.Exit(FAILED)


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Progress | None]:
    if quiet or not _err.is_terminal:
        yield None
        return
    with _err.status("Walking…") as status:

        def told(states: int, moves: int, depth: int, waiting: int) -> None:
            status.update(f"{states:,} states, {moves:,} moves, depth {depth}, {waiting:,} states to look at")

        yield told


def _document(report: Report, hints: tuple[str, ...], seconds: float) -> dict[str, Any]:
    return {
        "saga": report.name,
        "ok": report.ok,
        "complete": report.complete,
        "states": report.states,
        "moves": report.moves,
        "depth": report.depth,
        "unexplored": report.unexplored,
        "complete_to_depth": report.complete_to,
        "seconds": round(seconds, 3),
        "ends": report.ends,
        "violations": [
            {"rule": found.rule.value, "message": found.message, "trace": list(found.trace)}
            for found in report.violations
        ],
        "findings": list(hints),
        "bounds": list(report.bounds),
        "assumptions": list(report.assumptions),
    }


def _print(report: Report, hints: tuple[str, ...], seconds: float) -> None:
    def line(text: str, style: str = "") -> None:
        _out.print(escape(text), style=style, soft_wrap=True, highlight=False)

    line(f"{report.name}: {report.states:,} states, {report.moves:,} moves, depth {report.depth}, {seconds:.1f} s")
    line("\nIt ends as:")
    for end in report.ends:
        line(f"  {end}")
    for found in report.violations:
        line(f"\nBROKEN  {found.rule.value}: {found.message}", "bold red")
        for number, happened in enumerate(found.trace, 1):
            line(f"  {number:2}  {happened}")
    if hints:
        line("\nWorth a thought:", "yellow")
        for hint in hints:
            line(f"  {hint}")
    line("\nBounds:" if report.bounds else "")
    for bound in report.bounds:
        line(f"  {bound}")
    if report.assumptions:
        line("\nTaken for granted:")
        for assumption in report.assumptions:
            line(f"  {assumption}")
    if not report.complete:
        line(
            f"\nNOT COMPLETE: {report.unexplored:,} states were found and not looked at; everything within "
            f"{report.complete_to} moves was. Give more with --max-states.",
            "bold yellow",
        )
    if report.ok:
        told = "Every way ends, whole or undone." if report.complete else "Nothing is broken in what was walked."
        line(f"\n{told}", "green" if report.complete else "yellow")


def _fail(message: str, as_json: bool) -> NoReturn:
    if as_json:
        typer.echo(json.dumps({"ok": False, "error": message}))
    _err.print(f"[red]fluxora:[/red] {escape(message)}", highlight=False, soft_wrap=True)
    raise typer.Exit(FAILED)
