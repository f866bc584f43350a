"""Bodies in and out: JSON in UTF-8, and the headers that any request may come with."""

import re
from typing import Any, TypeVar

import orjson
from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.responses import Response

from web.problems import Malformed, Problem, from_validation

#: W3C Trace Context, version 00; all-zero ids are invalid.
_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_Body = TypeVar("_Body", bound=BaseModel)


def answer(document: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(document), status, headers, media_type="application/json")


def check_content(request: Request) -> None:
    """Only JSON in UTF-8 is read (RFC 8259); anything else is 415."""
    kind, _, parameters = request.headers.get("content-type", "").partition(";")
    name, _, value = parameters.strip().partition("=")
    charset = value.strip().strip('"').lower() if name.strip().lower() == "charset" else "utf-8"
    if kind.strip().lower() != "application/json" or charset not in ("utf-8", "utf8"):
        raise Problem(415, "unsupported-media-type", "The body is JSON in UTF-8: Content-Type: application/json.")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Problem(415, "unsupported-media-type", "The body is not compressed: no Content-Encoding.")


def traceparent(value: str | None) -> str | None:
    """The header if it is valid; W3C Trace Context tells to go on without an invalid one."""
    return value if value is not None and _TRACEPARENT.fullmatch(value) else None


def parse(model: type[_Body], body: bytes) -> tuple[_Body, Any]:
    """Return the body as ``model`` and the plain JSON it came as.

    Two parsers, because each lets something pass: pydantic's takes NaN and 1e999 inside of a payload,
    orjson's makes floats of large integers without a word.

    Raises:
        Malformed: not JSON, or not of the model's shape.
    """
    try:
        plain = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Malformed([("body", f"is valid JSON ({error})")]) from error
    try:
        return model.model_validate_json(body), plain
    except ValidationError as error:
        raise from_validation(error.errors(include_url=False, include_input=False)) from error


async def read(request: Request, model: type[_Body]) -> tuple[_Body, Any]:
    """As :func:`parse`, of a request whose body may be left out: it counts as ``{}`` then."""
    body = await request.body()
    if not body:
        return parse(model, b"{}")
    check_content(request)
    return parse(model, body)


def responds_async(request: Request) -> bool:
    """Whether the client prefers 202 to waiting (RFC 7240, section 4.1)."""
    preferences = ",".join(request.headers.getlist("prefer")).split(",")
    return any(preference.partition(";")[0].strip().lower() == "respond-async" for preference in preferences)


def accepted(request: Request, location: str) -> dict[str, str]:
    """The headers of a 202: where the outcome will be, and that the client's wish not to wait was honoured."""
    headers = {"Location": location}
    if responds_async(request):
        headers["Preference-Applied"] = "respond-async"
    return headers
