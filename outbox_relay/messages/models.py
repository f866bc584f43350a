"""The shapes of requests and answers: they check what comes in and are the OpenAPI document."""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from outbox_relay.messages.names import KEY_LIMIT, NAME, TYPE
from outbox_relay.messages.store import Status
from web import durations
from web.models import Time

_NAME, _TYPE = f"^{NAME.pattern}$", f"^{TYPE.pattern}$"
_RESERVED = "fluxora"


def _is_destination(name: str) -> str:
    if not NAME.fullmatch(name):
        raise ValueError("is a service's name: 1 to 100 of letters, digits, '.', '_' and '-', the first no sign")
    if name == _RESERVED or name.startswith(f"{_RESERVED}."):
        raise ValueError(f"does not begin with {_RESERVED!r}, which the platform's own topics do")
    return name


def _is_type(type: str) -> str:
    if not TYPE.fullmatch(type):
        raise ValueError("is 1 to 200 of letters, digits and '_.:/-', the first a letter or digit")
    return type


def _is_key(key: str) -> str:
    if "\x00" in key:
        raise ValueError("has no NUL")
    return key


class MessageRequest(BaseModel):
    # Strict: "3" is not a number. NaN is not JSON (RFC 8259).
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    destination_service: Annotated[str, AfterValidator(_is_destination)] = Field(
        description="Whom it is for: a service in the service registry (POST <service>/messages), or one with a topic.",
        examples=["billing"],
        json_schema_extra={"pattern": _NAME},
    )
    payload: Any = Field(description="Any JSON; the receiver gets it as it is.")
    key: Annotated[str, AfterValidator(_is_key)] | None = Field(
        default=None,
        min_length=1,
        max_length=KEY_LIMIT,
        description="Messages of one destination and key arrive in the order in which they were accepted; without a "
        "key there is no order. On Kafka it is the record's key.",
    )
    type: Annotated[str, AfterValidator(_is_type)] | None = Field(
        default=None, description="For routing rules and receivers.", json_schema_extra={"pattern": _TYPE}
    )
    message_id: UUID | None = Field(default=None, strict=False, description="Your own id; by default we make a UUIDv7.")


class MessageCreated(BaseModel):
    message_id: UUID
    status: Status


class MessageSummary(BaseModel):
    model_config = ConfigDict(extra="forbid")

    message_id: UUID
    destination_service: str
    routed_to: str = Field(description="Where it goes after the routing rules.")
    key: str | None
    type: str | None
    status: Status
    processed: bool = Field(description="Whether it is DELIVERED.")
    created_at: datetime
    processed_at: datetime | None = Field(description="When it became DELIVERED.")
    failed_at: datetime | None = Field(description="When it became FAILED.")
    retry_count: int = Field(description="Attempts that failed, since it was posted or last sent again.")
    redeliveries: int = Field(description="How often it was sent again after it had FAILED.")
    last_error: str | None = Field(description="Why the last attempt failed, or which rule drops it.")
    next_attempt_at: datetime | None = Field(
        description="null: it has ended, waits for an earlier message of its key, is being attempted, or is in Kafka."
    )
    handed_to_kafka_at: datetime | None = Field(description="When it was put into the outbox for its topic.")


class MessageView(MessageSummary):
    payload: Any


class MessagePage(BaseModel):
    model_config = ConfigDict(extra="forbid")

    messages: list[MessageSummary] = Field(description="Newest first, without payloads.")
    next: str | None = Field(description="The next page's path and query; null = this was the last.")
    next_cursor: str | None = Field(description="The cursor in it.")


class ListQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    destination: str | None = Field(default=None, pattern=_NAME, description="As it was posted.")
    type: str | None = Field(default=None, pattern=_TYPE)
    status: list[Status] | None = Field(default=None, description="In one of these; may be repeated.")
    created_after: Time | None = Field(default=None, description="RFC 3339, exclusive.")
    created_before: Time | None = Field(default=None, description="RFC 3339, exclusive.")
    older_than: str | None = Field(
        default=None, description="Age, as `10m` or `2h`.", json_schema_extra={"pattern": durations.PATTERN}
    )
    younger_than: str | None = Field(
        default=None, description="The same.", json_schema_extra={"pattern": durations.PATTERN}
    )
    limit: int | None = Field(default=None, ge=1, description="Messages on a page.")
    cursor: str | None = Field(default=None, max_length=200, description="`next_cursor` of the page before.")
