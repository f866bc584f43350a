"""Messages over REST, for services and scripts.

::

    with OutboxClient("web-shop") as outbox:
        sent = outbox.send_message("billing", {"order": 7}, key="customer-3")
        outbox.wait(sent.message_id)

Within a database transaction use ``participant.outbox.publish``: the event then leaves if, and only if, it commits.
"""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self, TypedDict, cast
from urllib.parse import quote
from uuid import UUID

from uuid_utils.compat import uuid7

from participant.rest import CallFailed, Conflict, Invalid, NotFound, RestClient, Unavailable

__all__ = [
    "CallFailed",
    "Conflict",
    "Invalid",
    "MessageStatus",
    "NotDelivered",
    "NotFound",
    "OutboxClient",
    "Sent",
    "Unavailable",
]

Status = Literal["PENDING", "DELIVERED", "FAILED"]

_FIRST_LOOK_SECONDS, _LONGEST_LOOK_SECONDS = 0.02, 1.0


@dataclass(frozen=True, slots=True)
class Sent:
    """A message that is accepted: it is durable, and delivered from then on."""

    message_id: str
    status: Status


class MessageStatus(TypedDict):
    """As the JSON has it: a later service may send more. Times are RFC 3339."""

    message_id: str
    destination_service: str
    routed_to: str
    key: str | None
    type: str | None
    payload: Any
    status: Status
    processed: bool
    created_at: str
    processed_at: str | None
    failed_at: str | None
    retry_count: int
    redeliveries: int
    last_error: str | None
    next_attempt_at: str | None
    handed_to_kafka_at: str | None


class NotDelivered(CallFailed):
    """The message is still PENDING; the time to wait is over.

    Attributes:
        message: as it stood then.
    """

    def __init__(self, message: MessageStatus, seconds: float) -> None:
        why = f": {message['last_error']}" if message["last_error"] else ""
        super().__init__(f"the message {message['message_id']} is not delivered within {seconds:g} s{why}")
        self.message = message


class OutboxClient:
    """The Outbox Service's ``/messages``.

    Blocking. Safe to share between threads. A message is sent with an Idempotency-Key, so it is sent again when no
    answer comes (or 429, 503) until ``retry_seconds`` are over, and is there once. Every method raises
    :class:`CallFailed`, or one of its kind: ``NotFound``, ``Conflict``, ``Invalid``, ``Unavailable``.
    """

    def __init__(
        self,
        service_name: str,
        base_url: str | None = None,
        *,
        timeout_seconds: float = 10.0,
        retry_seconds: float = 30.0,
    ) -> None:
        """
        Args:
            service_name: who sends; the ``sender`` of every message.
            base_url: the Outbox Service's; default: ``OUTBOX_URL`` of the environment.
            timeout_seconds: of one attempt.
            retry_seconds: from the first attempt on, how long a call without an answer is sent again.

        Raises:
            ValueError: there is no address.
        """
        url = base_url or os.environ.get("OUTBOX_URL")
        if not url:
            raise ValueError("no address of the Outbox Service: give base_url, or set OUTBOX_URL")
        self._service_name = service_name
        self._rest = RestClient(
            url, f"fluxora-outbox-client ({service_name})", timeout_seconds=timeout_seconds, retry_seconds=retry_seconds
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._rest.close()

    def send_message(
        self,
        destination: str,
        payload: Any,
        *,
        key: str | None = None,
        type: str | None = None,
        idempotency_key: str | None = None,
    ) -> Sent:
        """Send ``{"sender": service_name, "content": payload}`` to a service. It is durable when this returns.

        Args:
            payload: any JSON value.
            key: messages of one destination and key arrive in the order of their calls.
            type: for routing rules and receivers.
            idempotency_key: your own, to send it once over several calls of this method; default: a new one.

        Raises:
            Invalid: it breaks a rule, or a rule of the service refuses it; ``errors`` says which. Nothing was sent.
            Unavailable: no answer; it may have been accepted. Call again with the same ``idempotency_key``.
        """
        body: dict[str, Any] = {
            "destination_service": destination,
            "payload": {"sender": self._service_name, "content": payload},
        }
        for field, value in (("key", key), ("type", type)):
            if value is not None:
                body[field] = value
        sent = self._rest.call("POST", "/messages", body, key=idempotency_key or str(uuid7()))
        return Sent(sent["message_id"], sent["status"])

    def get_message(self, message_id: str | UUID) -> MessageStatus:
        """The message as it stands; raises NotFound."""
        return cast(MessageStatus, self._rest.call("GET", _path(message_id)))

    def wait(self, message_id: str | UUID, timeout: float = 60.0) -> MessageStatus:
        """The message once it is DELIVERED, or FAILED, which is no error of this call.

        Args:
            timeout: seconds; outages of the service meanwhile are waited through.

        Raises:
            NotDelivered: it is PENDING after ``timeout``; carries the message.
        """
        deadline = time.monotonic() + timeout
        pause = _FIRST_LOOK_SECONDS
        while True:
            left = max(0.0, deadline - time.monotonic())
            message = cast(MessageStatus, self._rest.call("GET", _path(message_id), retry_seconds=left))
            if message["status"] != "PENDING":
                return message
            left = deadline - time.monotonic()
            if left <= 0:
                raise NotDelivered(message, timeout)
            time.sleep(min(pause, left))
            pause = min(2 * pause, _LONGEST_LOOK_SECONDS)

    def list_messages(self, **filters: Any) -> Iterator[dict[str, Any]]:
        """Messages without their payloads, newest first, page after page.

        Args:
            filters: as of ``GET /messages``: destination, status, type, older_than, younger_than…
        """
        query = {name: value for name, value in filters.items() if value is not None}
        while True:
            page = self._rest.call("GET", "/messages", query=query)
            yield from page["messages"]
            if page["next_cursor"] is None:
                return
            query["cursor"] = page["next_cursor"]

    def redeliver(self, message_id: str | UUID) -> Sent:
        """Send a FAILED message again, with the same id, as the last of its key.

        Raises:
            Conflict: it is not FAILED; ``state`` says what it is. So it does when an earlier try of this call was
                heard and its answer lost.
        """
        # Not safe by a key: a second copy would meet PENDING, and be refused.
        sent = self._rest.call("POST", f"{_path(message_id)}/redeliver", {})
        return Sent(sent["message_id"], sent["status"])


def _path(message_id: str | UUID) -> str:
    return f"/messages/{quote(str(message_id), safe='')}"
