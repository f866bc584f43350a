"""Errors as RFC 9457 problem documents: every answer that is not a success is one.

::

    Problem
    ├── Malformed        422  the request breaks a rule; ``errors`` names field and rule
    ├── TooLarge         413
    ├── Conflict         409  illegal in this state, which it names
    └── Unavailable      503  a dependency is down or a limit of load is reached; comes with Retry-After
"""

import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import orjson
import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException
from starlette.responses import Response

from schemas import RegistryUnavailable

log = structlog.get_logger()

MEDIA_TYPE = "application/problem+json"
#: The caller's own words come back in a rule; this keeps an error from being as large as its request.
_LONGEST_RULE = 400
#: A body can break a rule in each of its fields; this many are told.
_MOST_ERRORS = 20
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")


class Problem(Exception):
    """An answer that is an error. ``slug``, the end of its ``type``, is stable; ``detail`` is for people."""

    def __init__(
        self,
        status: int,
        slug: str,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        **members: Any,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.slug = slug
        self.detail = detail
        self.headers = dict(headers or {})
        self.members = members

    def response(self, instance: str | None = None) -> Response:
        document: dict[str, Any] = {
            "type": f"urn:fluxora:problem:{self.slug}",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
        }
        if instance is not None:
            document["instance"] = instance
        return Response(orjson.dumps(document | self.members), self.status, self.headers, media_type=MEDIA_TYPE)


class Malformed(Problem):
    def __init__(self, errors: Sequence[tuple[str, str]], detail: str | None = None, slug: str = "malformed") -> None:
        told = [{"field": cut(field), "rule": cut(rule)} for field, rule in errors[:_MOST_ERRORS]]
        if detail is None:
            more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
            detail = f"{told[0]['field']}: {told[0]['rule']}{more}"
        super().__init__(422, slug, detail, errors=told)


class TooLarge(Problem):
    def __init__(self, detail: str, field: str, rule: str) -> None:
        # The rest of the body is not read, so the connection cannot be used again.
        super().__init__(
            413, "too-large", detail, headers={"Connection": "close"}, errors=[{"field": field, "rule": rule}]
        )


class Conflict(Problem):
    def __init__(self, detail: str, state: str) -> None:
        super().__init__(409, "conflict", detail, state=state)


class Unavailable(Problem):
    def __init__(self, detail: str, retry_after_seconds: int = 2, slug: str = "unavailable") -> None:
        super().__init__(503, slug, detail, headers={"Retry-After": str(retry_after_seconds)})


def cut(text: str) -> str:
    """Keep ``text`` short enough for an answer."""
    return text if len(text) <= _LONGEST_RULE else f"{text[:_LONGEST_RULE]}…"


def from_validation(errors: Sequence[ErrorDetails], skip: int = 0) -> Malformed:
    """Pydantic's errors in our words. ``skip`` leading parts of their place ("query", "body") are dropped."""
    return Malformed([(_field(error["loc"][skip:]), _rule(error)) for error in errors])


def _field(loc: Sequence[int | str]) -> str:
    path = ""
    for part in loc:
        if isinstance(part, int):
            path += f"[{part}]"
        elif _PLAIN.fullmatch(part):
            path += f".{part}" if path else part
        else:
            path += f"[{cut(part)!r}]"
    return path or "body"


def _rule(error: ErrorDetails) -> str:
    match error["type"]:
        case "missing":
            return "is required"
        case "extra_forbidden":
            return "is not known here; unknown names are refused so that a typing error is not ignored"
        case "json_invalid":
            return f"is valid JSON ({error['ctx']['error']})"
    return error["msg"].removeprefix("Value error, ").removeprefix("Input ")


def install(app: FastAPI) -> None:
    """Make every error of ``app`` a problem document. Unexpected ones are ``web.guard``'s."""

    @app.exception_handler(Problem)
    async def on_problem(request: Request, error: Problem) -> Response:
        return error.response(request.url.path)

    @app.exception_handler(RequestValidationError)
    async def on_validation(request: Request, error: RequestValidationError) -> Response:
        return from_validation(error.errors(), skip=1).response(request.url.path)

    @app.exception_handler(RegistryUnavailable)
    async def on_registry(request: Request, error: RegistryUnavailable) -> Response:
        log.warning("schema registry unavailable", error=str(error))
        return Unavailable("The schema registry does not answer; nothing was written.").response(request.url.path)

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, error: HTTPException) -> Response:
        phrase = HTTPStatus(error.status_code).phrase
        slug = phrase.lower().replace(" ", "-")
        match error.status_code:
            case 404:
                detail = "There is nothing at this path; /docs lists what there is."
            case 405:
                detail = f"{request.method} is not allowed here."
            case _:
                detail = str(error.detail)
        headers = dict(error.headers or {})
        if error.status_code == 405 and (route := request.scope.get("route")) is not None:
            # Starlette names the methods of the first route that has this path; another may have more.
            methods = app.openapi()["paths"].get(getattr(route, "path", None), {})
            headers["Allow"] = ", ".join(sorted(method.upper() for method in methods)) or headers.get("allow", "GET")
        return Problem(error.status_code, slug, detail, headers=headers).response(request.url.path)
