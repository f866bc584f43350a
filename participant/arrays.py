"""PostgreSQL array literals, written quickly.

The set-based statements take a column of the whole batch as one parameter. psycopg's own list adapter inspects and
escapes element by element, which was a third of a worker's CPU; here only what needs escaping is escaped
(PostgreSQL documentation, "Array Input and Output Syntax"). The statement casts the literal: ``CAST(:x AS text[])``.
"""

from collections.abc import Iterable
from datetime import datetime
from uuid import UUID


def text_array(values: Iterable[str | None]) -> str:
    """Return the literal of a ``text[]``; None is NULL. A value must not hold a NUL, as in any PostgreSQL text."""
    return "{" + ",".join(["NULL" if value is None else f'"{_escaped(value)}"' for value in values]) + "}"


def plain_array(values: Iterable[int | bool | datetime | None]) -> str:
    """Return the literal of an array of numbers, booleans or points in time, whose texts need no quotes."""
    return "{" + ",".join(["NULL" if value is None else str(value) for value in values]) + "}"


def uuid_array(values: Iterable[UUID]) -> str:
    """Return the literal of a ``uuid[]``."""
    return "{" + ",".join([str(value) for value in values]) + "}"


def bytea_array(values: Iterable[bytes | None]) -> str:
    """Return the literal of a ``bytea[]``, in hex format; None is NULL."""
    return "{" + ",".join(["NULL" if value is None else f'"\\\\x{value.hex()}"' for value in values]) + "}"


def _escaped(value: str) -> str:
    if '"' in value or "\\" in value:
        return value.replace("\\", "\\\\").replace('"', '\\"')
    return value
