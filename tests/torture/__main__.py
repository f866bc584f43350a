"""``python -m tests.torture``: see docs/torture.md."""

import json
import random
import signal
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from deploy.stack import StackError
from tests.torture.faults import FAULTS, UNPROVEN
from tests.torture.report import words
from tests.torture.run import Options, recheck, run

_out = Console(highlight=False, soft_wrap=True)
_err = Console(stderr=True, highlight=False, soft_wrap=True)

#: Something is not as it must be.
WRONG = 1


def main(
    seconds: Annotated[float, typer.Option(min=5, help="Of load and faults.")] = 300,
    seed: Annotated[int | None, typer.Option(help="Which faults in which order, and the clients' choices.")] = None,
    rate: Annotated[float, typer.Option(min=0.1, max=1000, help="Pieces of work that begin each second.")] = 10,
    concurrency: Annotated[int, typer.Option(min=1, max=500, help="Clients at once.")] = 24,
    faults: Annotated[str, typer.Option(help="Only these, by name, separated by commas.")] = "",
    settle: Annotated[float, typer.Option(min=5, help="Seconds in which all must end when the faults are over.")] = 180,
    processors: Annotated[int, typer.Option(min=2, max=12, help="Saga processors.")] = 2,
    run_dir: Annotated[
        Path, typer.Option(envvar="FLUXORA_TORTURE_RUN_DIR", help="History, report; data and logs after a failure.")
    ] = Path(".run-torture"),
    port_base: Annotated[
        int, typer.Option(envvar="FLUXORA_TORTURE_PORT_BASE", help="First of a hundred ports.")
    ] = 26600,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the stack running.")] = False,
    again: Annotated[bool, typer.Option("--recheck", help="Only judge what the last run has recorded.")] = False,
    listed: Annotated[bool, typer.Option("--list", help="Print the table of faults.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print figures and violations as JSON.")] = False,
) -> None:
    """Load the real stack, kill everything by a seeded schedule, judge what clients saw; exit code 1 if it is wrong.

    Example: python -m tests.torture --seconds 60 --seed 7 --faults kill-postgres,crash-processor.after_commit
    """
    if listed:
        _list(as_json)
        return
    if again:
        lines = recheck(run_dir)
        for line in lines or ["nothing is wrong"]:
            _out.print(line, markup=False)
        raise typer.Exit(WRONG if lines else 0)
    options = Options(
        seconds=seconds,
        seed=random.SystemRandom().randrange(1_000_000) if seed is None else seed,
        rate=rate,
        concurrency=concurrency,
        faults=tuple(name for name in faults.split(",") if name),
        run_dir=run_dir,
        port_base=port_base,
        settle=settle,
        processors=processors,
        keep=keep,
    )
    # `timeout 600 make torture` must leave no more behind than Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    _err.print(f"seed {options.seed}")
    try:
        result = run(options, lambda line: _err.print(f"  {line}", markup=False, style="dim"))
    except (StackError, ValueError) as error:
        _err.print(str(error), markup=False)
        raise typer.Exit(WRONG) from None
    for line in words(result.summary) if not as_json else [json.dumps(asdict(result.summary))]:
        _out.print(line, markup=False)
    for line in result.lines:
        _err.print(line, markup=False)
    if not result.violations:
        _err.print("nothing is lost, doubled, half done or stuck")
    raise typer.Exit(WRONG if result.violations else 0)


def _list(as_json: bool) -> None:
    if as_json:
        _out.print(json.dumps([asdict(fault) for fault in FAULTS] + [{"unproven": UNPROVEN}]), markup=False)
        return
    table = Table("fault", "DESIGN 6", "where", "how, or which test covers it")
    for row in _rows():
        table.add_row(*row)
    Console(width=max(160, _out.width)).print(table, markup=False)


def _rows() -> Iterator[tuple[str, str, str, str]]:
    for fault in FAULTS:
        numbers = ", ".join(map(str, fault.numbers))
        yield fault.name, numbers, fault.way.value, fault.target if fault.way.value == "elsewhere" else fault.how
    for number, why in UNPROVEN.items():
        yield "", str(number), "not proven", why


if __name__ == "__main__":
    typer.run(main)
