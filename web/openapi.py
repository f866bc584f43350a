"""What FastAPI does not find out by itself: bodies that a route reads itself, and the problem documents."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from web.models import ProblemDocument
from web.problems import MEDIA_TYPE

_SCHEMAS = "#/components/schemas/{model}"

#: What any of our routes may answer, by status.
EXAMPLES: Mapping[int, Mapping[str, Any]] = {
    408: {"slug": "slow-body", "detail": "The body did not arrive within 30 s."},
    415: {
        "slug": "unsupported-media-type",
        "detail": "The body is JSON in UTF-8: Content-Type: application/json.",
    },
    503: {"slug": "unavailable", "detail": "PostgreSQL does not answer."},
}

_HEADERS = [
    {
        "name": "Idempotency-Key",
        "in": "header",
        "required": False,
        "description": "Your own key for this request, 1 to 255 printable ASCII characters.",
        "schema": {
            "type": "string",
            "minLength": 1,
            "maxLength": 255,
            "pattern": "^[!-~]([ -~]*[!-~])?$",
        },
    },
    {
        "name": "traceparent",
        "in": "header",
        "required": False,
        "description": "W3C Trace Context; goes with all that follows. An invalid one is ignored.",
        "schema": {"type": "string"},
    },
]

_PREFER = {
    "name": "Prefer",
    "in": "header",
    "required": False,
    "description": "`respond-async`: do not wait for the decision, answer 202 as soon as the request is durable.",
    "schema": {"type": "string"},
}


def creates(model: type[BaseModel], *, required: bool = True) -> dict[str, Any]:
    """The ``openapi_extra`` of a route that creates something, once for a key, from a body it reads itself."""
    return {**body(model, required=required), "parameters": _HEADERS}


def asks(model: type[BaseModel], *, required: bool = False) -> dict[str, Any]:
    """The ``openapi_extra`` of a route that asks a transaction for something, and waits for the decision."""
    extra = creates(model, required=required)
    return extra | {"parameters": [*extra["parameters"], _PREFER]}


def body(model: type[BaseModel], *, required: bool = True) -> dict[str, Any]:
    """The ``openapi_extra`` of a route that reads its body itself."""
    content = {"application/json": {"schema": {"$ref": _SCHEMAS.format(model=model.__name__)}}}
    return {"requestBody": {"required": required, "content": content}}


def answers(
    examples: Mapping[int, Mapping[str, Any]],
    model: type[BaseModel],
    success: int,
    *problems: int,
    headers: tuple[str, ...] = (),
) -> dict[int | str, dict[str, Any]]:
    """The ``responses`` of a route: its success and the problems it may answer with, with their examples."""
    told: dict[int | str, dict[str, Any]] = {
        success: {
            "model": model,
            "description": HTTPStatus(success).phrase,
            "headers": {name: {"schema": {"type": "string"}} for name in headers},
        }
    }
    for status in problems:
        example = dict(examples[status])
        slug = example.pop("slug")
        phrase = HTTPStatus(status).phrase
        told[status] = {
            "description": phrase,
            "content": {
                MEDIA_TYPE: {
                    "schema": {"$ref": _SCHEMAS.format(model=ProblemDocument.__name__)},
                    "example": {"type": f"urn:fluxora:problem:{slug}", "title": phrase, "status": status} | example,
                }
            },
        }
        if status == 503:
            told[status]["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}}
    return told


def install(app: FastAPI, *requests: type[BaseModel]) -> None:
    """Add the models that no route names, ``requests`` and the problem, to the document of ``app``."""
    made = app.openapi

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            whole = made()
            components = whole.setdefault("components", {}).setdefault("schemas", {})
            models: tuple[type[BaseModel], ...] = (*requests, ProblemDocument)
            for model in models:
                schema = model.model_json_schema(ref_template=_SCHEMAS)
                components.update(schema.pop("$defs", {}))
                components[model.__name__] = schema
            for name in ("HTTPValidationError", "ValidationError"):
                components.pop(name, None)  # FastAPI's own form of a 422, which is never sent
            app.openapi_schema = whole
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]
