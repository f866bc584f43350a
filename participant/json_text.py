"""JSON text of values that a service's own code has made.

orjson writes NaN and the infinities as null: what was computed wrongly would be taken for what was left out.
"""

import math
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

import orjson

from schemas import FluxoraError


class NotJson(FluxoraError, TypeError):
    """A value cannot be written as JSON.

    Attributes:
        field: where, as a path: ``steps[2].payload.price``.
        rule: what must hold, for people.
    """

    def __init__(self, field: str, rule: str) -> None:
        super().__init__(f"{field} {rule}")
        self.field = field
        self.rule = rule


def dumps(value: Any, where: str, *, default: Callable[[Any], Any] | None = None) -> bytes:
    """Return ``value`` as compact JSON.

    Args:
        where: what the value is to the caller; begins the path in errors.
        default: makes what orjson does not know into what it knows; of text, or of finite numbers.

    Raises:
        NotJson: it holds something that JSON has not.
    """
    try:
        encoded = orjson.dumps(value, default=default)
    except orjson.JSONEncodeError as error:
        raise NotJson(where, f"must be JSON: {error}") from error
    # Only what was written as null needs the slow look.
    if b"null" in encoded and (found := _not_finite(value, where)) is not None:
        raise NotJson(found, "must be a finite number: JSON has neither NaN nor infinities")
    return encoded


def _not_finite(value: Any, path: str) -> str | None:
    """The path of the first float that is no number. As deep as orjson goes, which has written it."""
    match value:
        case float():
            return None if math.isfinite(value) else path
        case dict():
            parts = [(f"{path}.{key}", part) for key, part in value.items()]
        case list() | tuple():
            parts = [(f"{path}[{i}]", part) for i, part in enumerate(value)]
        case Enum():
            parts = [(path, value.value)]
        case _ if is_dataclass(value):
            parts = [(f"{path}.{field.name}", getattr(value, field.name)) for field in fields(value)]
        case _:
            return None
    return next((found for name, part in parts if (found := _not_finite(part, name)) is not None), None)
