"""Shapes that every REST process of ours has."""

import re
from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field


def _rfc3339(text: Any) -> Any:
    """Pydantic also takes numbers for times."""
    if not isinstance(text, str) or not _RFC3339.fullmatch(text):
        raise ValueError("is a time of RFC 3339 with its zone, as 2026-11-23T10:00:00Z")
    return text


_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
Time = Annotated[AwareDatetime, BeforeValidator(_rfc3339)]


class Body(BaseModel):
    """A request's body. A name that is not known is refused, so that a typing error is not ignored."""

    # Strict: "3" is not a number. NaN is not JSON (RFC 8259).
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


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
