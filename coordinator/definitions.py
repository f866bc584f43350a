"""``/saga-definitions``: sagas registered under a name and a version, to be run with an input.

A version never changes once it is registered, and a saga carries the steps it runs in its first input; so neither a
later version nor an earlier one can change a saga in flight.
"""

from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from coordinator import openapi
from coordinator.definition_store import DefinitionRow, DefinitionStore
from coordinator.models import (
    DefinitionPage,
    DefinitionRegistered,
    DefinitionRequest,
    DefinitionView,
    PageQuery,
)
from coordinator.settings import Settings
from coordinator.submission import Plan, Submissions
from coordinator.views import time
from saga_processors.definition import NAME
from web import cursor
from web.content import answer, check_content, parse
from web.paging import next_page, page_limit
from web.problems import Malformed, Problem

_Name = Annotated[str, Path(pattern=f"^{NAME.pattern}$")]
#: Told to who asks for a name that is not registered.
_NAMES_TOLD = 10


class Definitions:
    """The routes, and what a saga by name is to run."""

    def __init__(self, settings: Settings, store: DefinitionStore, submissions: Submissions) -> None:
        self._settings = settings
        self._store = store
        self._submissions = submissions

    async def plan(self, name: str, version: str | None) -> Plan:
        """What a saga of this name runs; ``version`` None: the one registered last.

        Raises:
            Malformed: it is not registered; the message says what is, or how to register it.
        """
        row = await self._store.read(name, version)
        if row is None:
            raise await self._unknown(name, version)
        return Plan.registered(row.name, row.version, DefinitionRequest.model_validate_json(orjson.dumps(row.document)))

    async def register(self, request: Request, name: _Name, version: _Name) -> Response:
        """Register a version of a definition. It never changes afterwards.

        201 if it is new, 200 if the same was registered before, 409 if another document was. Defaults count as
        written out, and the order of names does not matter. All rules of `POST /sagas` are checked that need no
        input; whether the services exist is only asked when a saga is started.
        """
        check_content(request)
        wanted, plain = parse(DefinitionRequest, await request.body())
        meaning = self._meaning(name, version, wanted)
        row, new = await self._store.register(name, version, plain)
        if not new and self._meaning(name, version, _document(row)) != meaning:
            raise Problem(
                409,
                "definition-exists",
                f"Version {version} of {name!r} is registered with another document, and versions never change. "
                f"Register this one under a new version. GET {_path(row)} shows the one that is there.",
            )
        body = {"name": name, "version": version, "registered": new, "created_at": time(row.created_at)}
        return answer(body, 201 if new else 200, {"Location": _path(row)} if new else None)

    async def show(self, name: _Name, version: _Name) -> Response:
        """One version, as it was registered."""
        row = await self._store.read(name, version)
        if row is None:
            raise Problem(404, "not-found", f"There is no version {version} of a definition {name!r}.")
        body = {"name": name, "version": version, "definition": row.document, "created_at": time(row.created_at)}
        return answer(body)

    async def versions(self, name: _Name, query: Annotated[PageQuery, Query()]) -> Response:
        """The versions of one definition, the one registered last, which runs by default, first."""
        return await self._page(f"/saga-definitions/{name}", name, query)

    async def page(self, query: Annotated[PageQuery, Query()]) -> Response:
        """All registered definitions, the one registered last first, a page at a time."""
        return await self._page("/saga-definitions", None, query)

    async def _page(self, path: str, name: str | None, query: PageQuery) -> Response:
        limit = page_limit(query.limit, self._settings.page_size, self._settings.max_page_size)
        after = None if query.cursor is None else cursor.decode(query.cursor)
        rows = await self._store.page(name, after, limit + 1)
        if name is not None and not rows and after is None:
            raise Problem(404, "not-found", f"There is no definition {name!r}.")
        following = cursor.encode(rows[limit - 1].created_at, rows[limit - 1].id) if len(rows) > limit else None
        return answer(
            {
                "definitions": [_summary(row) for row in rows[:limit]],
                "next": next_page(path, query, following),
                "next_cursor": following,
            }
        )

    def _meaning(self, name: str, version: str, document: DefinitionRequest) -> dict[str, Any]:
        """What must be equal for two documents to be the same."""
        plan = Plan.registered(name, version, document)
        return {**self._submissions.check(plan), "description": document.description}

    async def _unknown(self, name: str, version: str | None) -> Malformed:
        how = f"register it with PUT /saga-definitions/{name[:100]}/versions/<version>, or send the steps"
        versions = await self._store.page(name, None, _NAMES_TOLD)
        if versions:
            there = ", ".join(row.version for row in versions)
            rule = f"is a registered version of {name!r}; there are: {there}"
            return Malformed([("version", rule)], slug="unknown-definition")
        names = await self._store.names(_NAMES_TOLD)
        there = f"registered are: {', '.join(names)}" if names else "none is registered yet"
        rule = f"without steps, is that of a registered definition; there is no {name[:100]!r}, {there}; {how}"
        return Malformed([("name", rule)], slug="unknown-definition")


def _document(row: DefinitionRow) -> DefinitionRequest:
    return DefinitionRequest.model_validate_json(orjson.dumps(row.document))


def _path(row: DefinitionRow) -> str:
    return f"/saga-definitions/{row.name}/versions/{row.version}"


def _summary(row: DefinitionRow) -> dict[str, Any]:
    return {
        "name": row.name,
        "version": row.version,
        "description": row.document.get("description"),
        "steps": [step.get("name") or f"step-{i + 1}" for i, step in enumerate(row.document["steps"])],
        "created_at": time(row.created_at),
    }


def router(definitions: Definitions) -> APIRouter:
    routes = APIRouter(tags=["definitions"])
    routes.add_api_route(
        "/saga-definitions",
        definitions.page,
        methods=["GET"],
        operation_id="listDefinitions",
        summary="List registered definitions",
        responses=openapi.answers(DefinitionPage, 200, 422, 503),
    )
    routes.add_api_route(
        "/saga-definitions/{name}",
        definitions.versions,
        methods=["GET"],
        operation_id="listVersions",
        summary="List the versions of a definition",
        responses=openapi.answers(DefinitionPage, 200, 404, 422, 503),
    )
    routes.add_api_route(
        "/saga-definitions/{name}/versions/{version}",
        definitions.show,
        methods=["GET"],
        operation_id="getDefinition",
        summary="One version of a definition",
        responses=openapi.answers(DefinitionView, 200, 404, 422, 503),
    )
    routes.add_api_route(
        "/saga-definitions/{name}/versions/{version}",
        definitions.register,
        methods=["PUT"],
        operation_id="registerDefinition",
        summary="Register a version of a definition",
        responses=openapi.answers(DefinitionRegistered, 201, 408, 409, 413, 415, 422, 503, headers=("Location",))
        | {200: {"model": DefinitionRegistered, "description": "The same was registered before."}},
        openapi_extra=openapi.REGISTER,
    )
    return routes
