"""`python -m deploy`: start, stop and look at the local stack."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from deploy.parts import PlanError
from deploy.plan import Only, masked
from deploy.stack import Stack, StackError
from deploy.status import StackState

app = typer.Typer(
    help="The local stack: PostgreSQL, Kafka, Connect, schema registry and our services, under a supervisor.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
# In a pipe or a log nothing is wrapped.
out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 160)
err = Console(stderr=True, highlight=False, soft_wrap=True)

EXIT_FAILED = 1

Services = Annotated[
    list[Path] | None,
    typer.Option("--services", metavar="FILE", help="TOML file with further services; repeatable."),
]


def _stack(services: list[Path] | None = None, only: Only = "all") -> Stack:
    try:
        return Stack.of_environment(services or [], only, report=lambda line: out.print(f"  {line}", markup=False))
    except ValidationError as error:
        for problem in error.errors():
            field = "".join(str(step) for step in problem["loc"])
            err.print(f"FLUXORA_{field.upper()}: {problem['msg']}" if field else problem["msg"], markup=False)
        raise typer.Exit(EXIT_FAILED) from None


@app.command(epilog="Example: FLUXORA_PORT_BASE=31000 FLUXORA_RUN_DIR=.run2 python -m deploy up --only stack")
def up(
    services: Services = None,
    only: Annotated[Only, typer.Option(help="`stack` leaves our own services out.")] = "all",
) -> None:
    """Start the stack and return when all of it is ready."""
    begun = time.monotonic()
    # `timeout 60 make up` must leave no more behind than Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with out.status("starting …") if out.is_terminal else contextlib.nullcontext():
            endpoints = _stack(services, only).up()
    except (StackError, PlanError) as error:
        err.print(str(error), markup=False)
        raise typer.Exit(EXIT_FAILED) from None
    except KeyboardInterrupt:
        err.print("interrupted: what had been started is stopped")
        raise typer.Exit(130) from None
    out.print(f"Ready in {time.monotonic() - begun:.1f} s.")
    for key, value in endpoints.items():
        out.print(f"  {key}={masked(value)}", markup=False)


@app.command(epilog="Example: python -m deploy down")
def down() -> None:
    """Stop everything; data and logs stay."""
    begun = time.monotonic()
    stopped = _stack().down()
    if stopped:
        out.print(f"Stopped {', '.join(stopped)} in {time.monotonic() - begun:.1f} s.")
    else:
        out.print("Nothing was running.")


@app.command(epilog="Example: python -m deploy clean")
def clean() -> None:
    """Stop everything and remove the run directory: all data and logs."""
    stack = _stack()
    stack.clean()
    out.print(f"Removed {stack.root}.", markup=False)


@app.command(epilog="Example: python -m deploy status --json | jq .parts.kafka.pid")
def status(
    json: Annotated[bool, typer.Option("--json", help="Print the status as JSON.")] = False,
) -> None:
    """Show each part. Exit status 0 only if every part is ready."""
    stack = _stack()
    found = stack.status()
    if found is None:
        if json:
            typer.echo('{"state": "stopped", "parts": {}}')
        else:
            out.print(f"Never started in {stack.root}.", markup=False)
        raise typer.Exit(EXIT_FAILED)
    healthy = found.state is StackState.READY and not found.not_up()
    if json:
        typer.echo(found.model_dump_json(indent=2))
        raise typer.Exit(0 if healthy else EXIT_FAILED)
    table = Table(title=f"{found.state} · {stack.root}", title_justify="left")
    for column in ("part", "state", "pid", "since", "ready in", "restarts", "last exit"):
        table.add_column(column)
    for name, part in found.parts.items():
        table.add_row(
            name,
            part.state,
            str(part.pid or ""),
            time.strftime("%H:%M:%S", time.localtime(part.since)),
            f"{part.ready_seconds:.1f} s" if part.ready_seconds is not None else "",
            str(part.restarts or ""),
            part.last_exit or "",
        )
    out.print(table)
    if found.message:
        out.print(found.message, markup=False)
    if unwatched := stack.unwatched():
        out.print(f"Running without a supervisor: {', '.join(unwatched)}. `make down` stops them.")
    raise typer.Exit(0 if healthy else EXIT_FAILED)


@app.command(epilog="Example: python -m deploy logs kafka --follow")
def logs(
    parts: Annotated[list[str] | None, typer.Argument(help="Parts to show; all without.")] = None,
    lines: Annotated[int, typer.Option(help="Last lines of each.")] = 20,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
) -> None:
    """Print the ends of the logs."""
    stack = _stack()
    names = parts or sorted(file.stem for file in stack.settings.log_dir.glob("*.log"))
    width = max((len(name) for name in names), default=0)
    for name in names:
        if not stack.settings.log_file(name).exists():
            err.print(f"no log of {name!r} in {stack.settings.log_dir}", markup=False)
            raise typer.Exit(EXIT_FAILED)
        for line in stack.log_tail(name, lines).splitlines():
            typer.echo(f"{name:<{width}} | {line}")
    if follow:
        with contextlib.suppress(KeyboardInterrupt):
            _follow(stack, names, width)


def _follow(stack: Stack, names: list[str], width: int) -> None:
    files = {name: stack.settings.log_file(name).open(errors="replace") for name in names}
    for file in files.values():
        file.seek(0, os.SEEK_END)
    while True:
        for name, file in files.items():
            for line in file:
                typer.echo(f"{name:<{width}} | {line}", nl=False)
        time.sleep(0.2)
