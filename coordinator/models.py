"""The shapes of requests and answers: they check what comes in and are the OpenAPI document.

Answers are built as plain dicts (``coordinator.views``); a test holds them against the models here.
What a saga must be beyond its shape is in ``saga_processors.definition``, in one place for every way in.
"""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from participant.sagas import Retry, Step
from saga_processors.definition import MAX_ATTEMPTS, MAX_TIMEOUT_MS, NAME
from saga_processors.saga import SagaState, StepState
from web.durations import PATTERN
from web.models import Time

_MAX_SECONDS = MAX_TIMEOUT_MS / 1000
_NAME = f"^{NAME.pattern}$"

Seconds = Annotated[float, Field(ge=0, le=_MAX_SECONDS)]
#: Checked with its rule by SagaDefinition.check; here for the OpenAPI document.
Name = Annotated[str, Field(json_schema_extra={"pattern": _NAME})]

_RETRY = Retry()


class _Body(BaseModel):
    # Strict: "3" is not a number. NaN is not JSON (RFC 8259).
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class RetryRequest(_Body):
    """How often a failed action is tried again, and after what wait. Compensations have no limit."""

    max_attempts: int = Field(default=_RETRY.max_attempts, ge=1, le=MAX_ATTEMPTS)
    initial_delay_seconds: Seconds = _RETRY.initial_delay_seconds
    max_delay_seconds: Seconds = _RETRY.max_delay_seconds
    multiplier: float = Field(default=_RETRY.multiplier, ge=1, le=10)
    jitter: float = Field(default=_RETRY.jitter, ge=0, le=1, description="Share of a wait that varies.")
    attention_after: int = Field(
        default=_RETRY.attention_after,
        ge=1,
        le=2**31 - 1,
        description="From this attempt on the saga is shown with `needs_attention`.",
    )


class StepRequest(_Body):
    service_name: Name = Field(description="A Kafka service: its topic `<service_name>.commands` exists.")
    name: Name | None = Field(default=None, description="Unique in the saga; default `step-<n>`, n from 1.")
    command: Name | None = Field(default=None, description="Which handler of the service runs; default: the name.")
    payload: Any = Field(default_factory=dict, description="Any JSON; given to the action and to the compensation.")
    depends_on: list[Name] | None = Field(
        default=None,
        description="Steps that must have been executed; default: the one before it in the list.",
    )
    kind: Literal["compensatable", "pivot", "retriable"] = "compensatable"
    retry: RetryRequest | None = None
    timeout_seconds: Seconds = Field(default=Step("").timeout_seconds, description="Of one attempt.")
    action_endpoint: str | None = Field(
        default=None, description="HTTP steps come with the next release; until then a value here is refused."
    )
    compensation_endpoint: str | None = Field(default=None, description="As `action_endpoint`.")


class SagaRequest(_Body):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "publish-forecast",
                    "steps": [
                        {
                            "name": "ingest",
                            "service_name": "readings",
                            "payload": {"meter": "m-17", "kwh": 42.5},
                        },
                        {"name": "forecast", "service_name": "forecasts", "payload": {"meter": "m-17"}},
                        {
                            "name": "bill",
                            "service_name": "billing",
                            "payload": {"meter": "m-17", "amount": 12.75},
                            "retry": {"max_attempts": 5},
                            "timeout_seconds": 10,
                        },
                    ],
                    "timeout_seconds": 300,
                }
            ]
        }
    )

    name: Name
    steps: list[StepRequest] = Field(description="Run in this order unless `depends_on` says otherwise.")
    saga_id: UUID | None = Field(default=None, description="Your own id for it; default: a new UUIDv7.")
    timeout_seconds: Seconds | None = Field(default=None, description="Of the whole saga; then it is undone.")


class SagaCreated(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"saga_id": "01928f6e-3f1c-7d2a-9c1b-5f6a7b8c9d0e", "state": "STARTED"}]},
    )

    saga_id: UUID
    state: Literal["STARTED"]


class StepView(BaseModel):
    model_config = ConfigDict(extra="forbid")

    id: str = Field(description="Its name, unique in the saga.")
    name: str
    service_name: str
    command: str
    kind: Literal["compensatable", "pivot", "retriable"]
    depends_on: list[str]
    payload: Any
    state: StepState
    attempt: int = Field(description="Of the action, or of the compensation once that runs; 0 = not begun.")
    result: Any = Field(description="What the action answered; null until then.")
    reason: str | None = Field(description="Of a refusal or of the last failed attempt.")
    in_doubt: bool = Field(description="True if an attempt of the action went unanswered: it may have run.")
    started_at: datetime | None
    ended_at: datetime | None
    timeout_at: datetime | None = Field(description="When the attempt in progress counts as unanswered.")
    retry_at: datetime | None = Field(description="When the next attempt begins.")


class SagaView(BaseModel):
    model_config = ConfigDict(extra="forbid")

    saga_id: UUID
    name: str
    state: SagaState
    steps: list[StepView]
    current_step_index: int = Field(
        description="The step it is at, always an index of `steps`. Forward: the first that is running "
        "or to be run; backward: the last that is being undone or to be undone; COMPLETED: the last; "
        "FAILED: the one that failed."
    )
    needs_attention: bool = Field(description="It cannot end without help, or has tried for very long.")
    parked: bool = Field(description="An input made the machine itself fail; an operator must look.")
    reason: str | None = Field(description="Why it was given up.")
    timeout_at: datetime | None
    created_at: datetime
    updated_at: datetime


class SagaSummary(BaseModel):
    model_config = ConfigDict(extra="forbid")

    saga_id: UUID
    name: str
    state: SagaState
    services: list[str]
    needs_attention: bool
    parked: bool
    created_at: datetime
    updated_at: datetime


class SagaPage(BaseModel):
    model_config = ConfigDict(extra="forbid")

    sagas: list[SagaSummary] = Field(description="Newest first.")
    next: str | None = Field(description="The next page's path and query; null = this was the last.")
    next_cursor: str | None = Field(description="The cursor in it.")


class WaitQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    wait: str | None = Field(
        default=None,
        description="Answer when the saga has ended, at the latest after this time: `30s`, `30`, `500ms`, "
        "`1m`. More than the limit (60 s by default) is cut to it.",
        examples=["30s"],
        json_schema_extra={"pattern": PATTERN},
    )


class ListQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str | None = Field(default=None, pattern=_NAME, description="Sagas of this name.")
    state: list[SagaState] | None = Field(default=None, description="In one of these states; may be repeated.")
    service: str | None = Field(default=None, pattern=_NAME, description="With a step at this service.")
    created_after: Time | None = Field(default=None, description="RFC 3339, exclusive.")
    created_before: Time | None = Field(default=None, description="RFC 3339, exclusive.")
    needs_attention: bool | None = None
    limit: int | None = Field(default=None, ge=1, description="Sagas on a page.")
    cursor: str | None = Field(default=None, max_length=200, description="`next_cursor` of the page before.")
