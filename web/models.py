"""Shapes that every REST process of ours has."""

import re
from functools import cache
from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, model_validator


def _rfc3339(text: Any) -> Any:
    """Pydantic also takes numbers for times."""
    if not isinstance(text, str) or not _RFC3339.fullmatch(text):
        raise ValueError("is a time of RFC 3339 with its zone, as 2026-11-23T10:00:00Z")
    return text


_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
Time = Annotated[AwareDatetime, BeforeValidator(_rfc3339)]


class Body(BaseModel):
    """A request's body. A name that is not known is refused, so that a typing error is not ignored.

    ``null`` for a field that may be left out, and cannot be null, is the same as leaving it out: many clients write
    optional fields so.
    """

    # Strict: "3" is not a number. NaN is not JSON (RFC 8259).
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        return {name: value for name, value in body.items() if value is not None or name not in cls._optional()}

    @classmethod
    @cache
    def _optional(cls) -> frozenset[str]:
        """Fields with a default, whose type has no null of its own."""
        return frozenset(
            name
            for name, field in cls.model_fields.items()
            if not field.is_required() and field.default is not None and field.annotation is not Any
        )


class FieldError(BaseModel):
    field: str
    rule: str


class ProblemDocument(BaseModel):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    instance: str | None = None
    errors: list[FieldError] | None = Field(default=None, description="422 and 413: the field and its rule.")
    state: str | None = Field(default=None, description="409: the state that forbids it.")
