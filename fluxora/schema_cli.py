"""``fluxora schema``: users' record types in the registry."""

import importlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fluxora.settings import CliSettings
from fluxora.trouble import fail
from participant.events import read_schema, type_of
from schemas import FluxoraError, InvalidSchema, register_types
from schemas.registration import registered

app = typer.Typer(help="Avro schemas of your events in the registry.", no_args_is_help=True)
_out = Console()
_err = Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]


@app.command(epilog="Example: fluxora schema register schemas/order_placed.avsc shop.events:OrderShipped")
def register(
    types: Annotated[
        list[str], typer.Argument(metavar="FILE|MODULE:NAME…", help=".avsc files, declared classes, EventTypes.")
    ],
    as_json: Json = False,
) -> None:
    """Register record types, each under its full name, with BACKWARD compatibility. Again does nothing.

    All of them are read before the first one is registered. Reads SCHEMA_REGISTRY_URL.
    """
    try:
        ids = register_types(_registry(), [_schema(one) for one in types])
    except (FluxoraError, OSError) as error:
        fail(str(error))
    if as_json:
        typer.echo(json.dumps(ids))
        return
    for subject, id in ids.items():
        _out.print(f"[green]registered[/green]  {escape(subject)}  id {id}", highlight=False, soft_wrap=True)


@app.command("list", epilog="Example: fluxora schema list --json")
def list_(as_json: Json = False) -> None:
    """List the registry's record types, with the newest version of each. Reads SCHEMA_REGISTRY_URL."""
    try:
        found = registered(_registry())
    except FluxoraError as error:
        fail(str(error))
    if as_json:
        typer.echo(json.dumps([{"subject": one.subject, "version": one.version, "id": one.schema_id} for one in found]))
        return
    if not found:
        _err.print("The registry has no schemas yet: fluxora init registers the platform's")
        return
    table = Table("subject", "version", "id")
    for one in found:
        table.add_row(escape(one.subject), str(one.version), str(one.schema_id))
    _out.print(table)


def _schema(target: str) -> Mapping[str, Any]:
    module, colon, name = target.partition(":")
    if not colon or Path(target).exists():
        return read_schema(target)
    # As `python -m` does: a script's own folder would be in the way here.
    sys.path.insert(0, str(Path.cwd()))
    try:
        declared: object = importlib.import_module(module)
        for part in name.split("."):
            declared = getattr(declared, part)
    except (ImportError, AttributeError) as error:
        raise InvalidSchema(f"{target}: {error}; give FILE.avsc, or MODULE:NAME as for import") from error
    finally:
        sys.path.pop(0)
    return type_of(declared).schema


def _registry() -> str:
    url = CliSettings().schema_registry_url
    if not url:
        fail("SCHEMA_REGISTRY_URL is not set; `make up` writes it to .run/endpoints.env: source that, or set it")
    return url
