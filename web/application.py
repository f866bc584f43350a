"""The frame of every REST process: limits around each request, problem documents, an honest OpenAPI document."""

from importlib.metadata import PackageNotFoundError, version
from typing import Any

import structlog
from fastapi import FastAPI, Request
from pydantic import BaseModel
from starlette.responses import Response

from web import docs, openapi, problems
from web.database import DatabaseUnavailable
from web.guard import Guard
from web.metrics import RequestMetrics
from web.settings import RestSettings

log = structlog.get_logger()


def application(
    settings: RestSettings,
    metrics: RequestMetrics,
    *requests: type[BaseModel],
    title: str,
    description: str,
    **more: Any,
) -> FastAPI:
    """An application without routes.

    Args:
        requests: bodies that routes read themselves, for the OpenAPI document.
        more: further arguments of FastAPI, as ``lifespan``.
    """
    app = FastAPI(
        title=title,
        version=_version(),
        description=description,
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
        **more,
    )
    app.add_middleware(
        Guard,
        metrics=metrics,
        max_body_bytes=settings.max_body_bytes,
        body_timeout_seconds=settings.body_timeout_seconds,
        max_in_flight=settings.max_in_flight,
    )
    problems.install(app)
    openapi.install(app, *requests)
    docs.install(app)

    @app.exception_handler(DatabaseUnavailable)
    async def on_database(request: Request, error: DatabaseUnavailable) -> Response:
        log.warning("database unavailable", error=str(error), path=request.url.path)
        return problems.Unavailable("PostgreSQL does not answer.").response(request.url.path)

    return app


def _version() -> str:
    try:
        return version("fluxora-transactions")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "0"
