"""How a command fails: one line on standard error that says what to do, and exit code 1."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import psycopg
import typer
from confluent_kafka import KafkaException
from rich.console import Console
from rich.markup import escape

from schemas import FluxoraError

#: Exit codes: 1, it did not work; 2, wrong usage (typer's own).
FAILED = 1


def fail(message: str) -> NoReturn:
    """Print the message and end the command."""
    Console(stderr=True).print(f"[red]fluxora:[/red] {escape(message)}", highlight=False, soft_wrap=True)
    raise typer.Exit(FAILED)


@contextmanager
def trying() -> Iterator[None]:
    """Turn what may go wrong into :func:`fail`: our own errors, Kafka's and PostgreSQL's."""
    try:
        yield
    except FluxoraError as error:
        fail(str(error))
    except KafkaException as error:
        fail(f"Kafka: {error.args[0].str()}")
    except psycopg.Error as error:
        fail(f"PostgreSQL: {error}")
