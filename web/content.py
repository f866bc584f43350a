"""Bodies in and out: JSON in UTF-8, and the trace that comes with a request."""

import re
from typing import Any

import orjson
from fastapi import Request
from starlette.responses import Response

from web.problems import Problem

#: W3C Trace Context, version 00; all-zero ids are invalid.
_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


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
