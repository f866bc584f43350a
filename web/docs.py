"""``/docs``: the OpenAPI document as one plain page. FastAPI's own pages load their scripts from a CDN, which a
platform inside a network may not reach and should not trust."""

from html import escape
from typing import Any

from fastapi import FastAPI
from starlette.responses import HTMLResponse

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}}
code{{font-family:ui-monospace,monospace}}dt{{margin-top:1rem}}dd{{color:#444}}</style></head>
<body><h1>{title} {version}</h1><p>{description}</p>
<p>The whole of it, with all fields, for any OpenAPI tool: <a href="openapi.json">openapi.json</a></p>
<dl>{operations}</dl></body></html>
"""


def install(app: FastAPI) -> None:
    """Serve the page. The application is made with ``docs_url=None`` and ``redoc_url=None``."""

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(page(app.openapi()))


def page(document: dict[str, Any]) -> str:
    """One entry for each operation: method, path, summary, description, and what it may answer."""
    operations = []
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            answers = ", ".join(sorted(operation["responses"]))
            operations.append(
                f"<dt><code>{method.upper()} {escape(path)}</code> · {escape(operation['summary'])}</dt>"
                f"<dd>{escape(operation.get('description', ''))} <small>Answers {answers}.</small></dd>"
            )
    info = document["info"]
    return _PAGE.format(
        title=escape(info["title"]),
        version=escape(info["version"]),
        description=escape(info.get("description", "")),
        operations="\n".join(operations),
    )
