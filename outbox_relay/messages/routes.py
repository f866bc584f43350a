"""``/messages``: send one, look at one, list them, send a failed one again."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Annotated, Any
from uuid import UUID

import orjson
from fastapi import APIRouter, Query, Request
from starlette.responses import Response
from uuid_utils.compat import uuid7

from outbox_relay.messages.acceptance import Acceptance, Answered, KeyReused, MessageExists, Posted
from outbox_relay.messages.delivery import Delivery, Ways
from outbox_relay.messages.metrics import Metrics
from outbox_relay.messages.models import (
    ListQuery,
    MessageCreated,
    MessagePage,
    MessageRequest,
    MessageView,
)
from outbox_relay.messages.rules import Rules, Verdict
from outbox_relay.messages.settings import MessageSettings
from outbox_relay.messages.store import MessageFilter, NotFailed, Store
from outbox_relay.messages.upkeep import Upkeep
from outbox_relay.messages.views import summary, view
from web import cursor, durations, openapi
from web.admission import Admission
from web.content import answer, check_content, parse, traceparent
from web.idempotency import digest, idempotency_key, reused
from web.paging import next_page, page_limit
from web.problems import Conflict, Malformed, Problem, TooLarge, Unavailable

_EXAMPLES: Mapping[int, Mapping[str, Any]] = {
    **openapi.EXAMPLES,
    404: {"slug": "not-found", "detail": "There is no message 01928f6e-3f1c-7d2a-9c1b-5f6a7b8c9d0e."},
    409: {
        "slug": "conflict",
        "detail": "The message 01928f6e-3f1c-7d2a-9c1b-5f6a7b8c9d0e is PENDING; only a FAILED one is sent again.",
        "state": "PENDING",
    },
    413: {
        "slug": "too-large",
        "detail": "payload is 1000000 bytes; at most 983040 may be.",
        "errors": [{"field": "payload", "rule": "is at most 983040 bytes as JSON"}],
    },
    422: {
        "slug": "malformed",
        "detail": "destination_service: is required",
        "errors": [{"field": "destination_service", "rule": "is required"}],
    },
}
_answers = partial(openapi.answers, _EXAMPLES)


class Messages:
    """The routes and what they need."""

    def __init__(
        self,
        settings: MessageSettings,
        acceptance: Acceptance,
        store: Store,
        delivery: Delivery,
        ways: Ways,
        rules: Rules,
        upkeep: Upkeep,
        metrics: Metrics,
        admission: Admission,
    ) -> None:
        self._settings = settings
        self._acceptance = acceptance
        self._store = store
        self._delivery = delivery
        self._ways = ways
        self._rules = rules
        self._upkeep = upkeep
        self._metrics = metrics
        self._admission = admission

    async def create(self, request: Request) -> Response:
        """Accept a message. It is durable when the answer comes, and delivered from then on.

        A destination that nobody knows is accepted too: it may come before the last attempt. With an
        `Idempotency-Key`, the same request sent again is answered as the first one was, with
        `Idempotency-Replayed: true`, also when a rule has changed since; another body under the same key is 422. A
        request that was refused is no first one. After 503 it may or may not have been written: send it again with
        the same `message_id` or `Idempotency-Key` to have it once.
        """
        check_content(request)
        once = idempotency_key(request.headers.getlist("idempotency-key"))
        self._admission.check()
        wanted, plain = parse(MessageRequest, await request.body())
        payload = _compact(wanted.payload)
        limit = self._settings.max_payload_bytes
        if len(payload) > limit:
            raise TooLarge(
                f"payload is {len(payload)} bytes; at most {limit} may be.",
                "payload",
                f"is at most {limit} bytes as JSON",
            )
        verdict = self._rules.decide(wanted.destination_service, wanted.type)
        if verdict.action != "reject" and self._upkeep.pending(verdict.to) >= self._settings.max_pending:
            raise Unavailable(
                f"{verdict.to} has {self._settings.max_pending} messages that wait already.", 30, "too-many-pending"
            )
        message = Posted(
            id=wanted.message_id or uuid7(),
            destination=wanted.destination_service,
            routed_to=verdict.to,
            key=wanted.key,
            type=wanted.type,
            payload=payload,
            traceparent=traceparent(request.headers.get("traceparent")),
            by_kafka=verdict.action == "deliver" and await self._ways.is_kafka(verdict.to),
            dropped=f"dropped by {verdict.reason}" if verdict.action == "drop" else None,
        )
        digested = None if once is None else digest("POST /messages", plain)
        try:
            answered = await self._accept(message, verdict, once, digested)
        except MessageExists as error:
            raise await self._conflict(message.id) from error
        except KeyReused as error:
            raise reused("message") from error
        headers = {"Location": f"/messages/{answered.message_id}"}
        if answered.replayed:
            headers["Idempotency-Replayed"] = "true"
        else:
            self._metrics.accepted.inc()
            self._delivery.wake()
        return answer({"message_id": answered.message_id, "status": answered.status}, 201, headers)

    async def _accept(self, message: Posted, verdict: Verdict, once: str | None, digested: bytes | None) -> Answered:
        """Write the message, unless a rule refuses it now; what was accepted before the rule came stays accepted."""
        with self._admission.creating():
            if verdict.action != "reject":
                return await self._acceptance.create(message, once, digested)
            earlier = await self._acceptance.answered(message, once, digested)
        if earlier is None:
            raise Malformed([("destination_service", f"is refused by {verdict.reason}")], slug="refused-by-rule")
        return earlier

    async def show(self, message_id: UUID) -> Response:
        """One message, as it stands now."""
        return answer(view(await self._found(message_id)))

    async def page(self, query: Annotated[ListQuery, Query()]) -> Response:
        """Messages without their payloads, newest first, a page at a time."""
        limit = page_limit(query.limit, self._settings.page_size, self._settings.max_page_size)
        rows = await self._store.page(_filter(query), limit + 1)
        following = None
        if len(rows) > limit:
            rows = rows[:limit]
            following = cursor.encode(rows[-1]["created_at"], rows[-1]["id"])
        return answer(
            {
                "messages": [summary(row) for row in rows],
                "next": next_page("/messages", query, following),
                "next_cursor": following,
            }
        )

    async def redeliver(self, message_id: UUID) -> Response:
        """Send a FAILED message again, with the same id, as the last of its key and by the rules as they are now."""
        row = await self._found(message_id)
        verdict = self._rules.decide(row["destination"], row["type"])
        dropped = None if verdict.action == "deliver" else f"dropped by {verdict.reason}"
        try:
            await self._store.redeliver(message_id, verdict.to, row["key"], dropped)
        except NotFailed as error:
            raise Conflict(
                f"The message {message_id} is {error.status}; only a FAILED one is sent again.", error.status
            ) from error
        self._delivery.wake()
        status = "PENDING" if dropped is None else "FAILED"
        return answer({"message_id": message_id, "status": status}, 202, {"Location": f"/messages/{message_id}"})

    async def _found(self, message_id: UUID) -> dict[str, Any]:
        row = await self._store.read(message_id)
        if row is None:
            raise Problem(404, "not-found", f"There is no message {message_id}.")
        return row

    async def _conflict(self, message_id: UUID) -> Problem:
        row = await self._store.read(message_id)
        status = "unknown" if row is None else row["status"]
        return Conflict(
            f"There is another message {message_id} already; its status is {status}. Nothing was written.", status
        )


def _compact(payload: Any) -> bytes:
    try:
        text = orjson.dumps(payload)
    except orjson.JSONEncodeError as error:
        rule = "has integers from -2^63 to 2^64-1 only; send a larger one as a string"
        raise Malformed([("payload", rule)]) from error
    return text


def _filter(query: ListQuery) -> MessageFilter:
    now = datetime.now(UTC)
    try:
        before = [query.created_before] if query.created_before else []
        if query.older_than is not None:
            before.append(now - timedelta(seconds=durations.seconds("older_than", query.older_than)))
        after = [query.created_after] if query.created_after else []
        if query.younger_than is not None:
            after.append(now - timedelta(seconds=durations.seconds("younger_than", query.younger_than)))
    except OverflowError as error:
        raise Malformed([("older_than", "is not longer than the calendar")]) from error
    return MessageFilter(
        destination=query.destination,
        type=query.type,
        statuses=query.status or (),
        created_after=max(after, default=None),
        created_before=min(before, default=None),
        after=None if query.cursor is None else cursor.decode(query.cursor),
    )


def router(messages: Messages) -> APIRouter:
    routes = APIRouter(tags=["messages"])
    routes.add_api_route(
        "/messages",
        messages.create,
        methods=["POST"],
        status_code=201,
        operation_id="sendMessage",
        summary="Send a message",
        responses=_answers(
            MessageCreated, 201, 408, 409, 413, 415, 422, 503, headers=("Location", "Idempotency-Replayed")
        ),
        openapi_extra=openapi.creates(MessageRequest),
    )
    routes.add_api_route(
        "/messages",
        messages.page,
        methods=["GET"],
        operation_id="listMessages",
        summary="List messages",
        responses=_answers(MessagePage, 200, 422, 503),
    )
    routes.add_api_route(
        "/messages/{message_id}",
        messages.show,
        methods=["GET"],
        operation_id="getMessage",
        summary="One message",
        responses=_answers(MessageView, 200, 404, 422, 503),
    )
    routes.add_api_route(
        "/messages/{message_id}/redeliver",
        messages.redeliver,
        methods=["POST"],
        status_code=202,
        operation_id="redeliverMessage",
        summary="Send a failed message again",
        responses=_answers(MessageCreated, 202, 404, 409, 422, 503, headers=("Location",)),
    )
    return routes
