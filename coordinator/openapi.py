"""What FastAPI does not find out by itself: the body that a route reads itself, and the problem documents."""

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from coordinator.models import ProblemDocument, SagaRequest
from coordinator.problems import MEDIA_TYPE

_SCHEMAS = "#/components/schemas/{model}"

_EXAMPLES: dict[int, dict[str, Any]] = {
    404: {"slug": "not-found", "detail": "There is no saga 01928f6e-3f1c-7d2a-9c1b-5f6a7b8c9d0e."},
    408: {"slug": "slow-body", "detail": "The body did not arrive within 30 s."},
    409: {
        "slug": "conflict",
        "detail": "There is a transaction 01928f6e-3f1c-7d2a-9c1b-5f6a7b8c9d0e already; "
        "its state is EXECUTING. Nothing was written.",
        "state": "EXECUTING",
    },
    413: {
        "slug": "too-large",
        "detail": "steps[0].payload is 300000 bytes; at most 262144 may be.",
        "errors": [{"field": "steps[0].payload", "rule": "is at most 262144 bytes as JSON"}],
    },
    415: {
        "slug": "unsupported-media-type",
        "detail": "The body is JSON in UTF-8: Content-Type: application/json.",
    },
    422: {
        "slug": "malformed",
        "detail": "steps[0].service_name: is required",
        "errors": [{"field": "steps[0].service_name", "rule": "is required"}],
    },
    503: {"slug": "unavailable", "detail": "PostgreSQL does not answer."},
}

CREATE: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": _SCHEMAS.format(model=SagaRequest.__name__)}}},
    },
    "parameters": [
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
            "description": "W3C Trace Context; goes with every command. An invalid one is ignored.",
            "schema": {"type": "string"},
        },
    ],
}


def answers(
    model: type[BaseModel], success: int, *problems: int, headers: tuple[str, ...] = ()
) -> dict[int | str, dict[str, Any]]:
    """The ``responses`` of a route: its success and the problems it may answer with."""
    told: dict[int | str, dict[str, Any]] = {
        success: {
            "model": model,
            "description": HTTPStatus(success).phrase,
            "headers": {name: {"schema": {"type": "string"}} for name in headers},
        }
    }
    for status in problems:
        example = dict(_EXAMPLES[status])
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


def install(app: FastAPI) -> None:
    """Add the models that no route names to the document of ``app``."""
    made = app.openapi

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            whole = made()
            components = whole.setdefault("components", {}).setdefault("schemas", {})
            for model in (SagaRequest, ProblemDocument):
                schema = model.model_json_schema(ref_template=_SCHEMAS)
                components.update(schema.pop("$defs", {}))
                components[model.__name__] = schema
            for name in ("HTTPValidationError", "ValidationError"):
                components.pop(name, None)  # FastAPI's own form of a 422, which is never sent
            app.openapi_schema = whole
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]
