"""The shapes of requests and answers: they check what comes in and are the OpenAPI document.

Answers are built as plain dicts (``coordinator.views``); a test holds them against the models here.
What a saga must be beyond its shape is in ``saga_processors.definition``, in one place for every way in.
"""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from coordinator.history import HistoryEntry
from participant.sagas import Retry, Step
from saga_processors.definition import MAX_ATTEMPTS, MAX_TIMEOUT_MS, NAME
from saga_processors.saga import SagaState, StepState
from web.durations import PATTERN
from web.models import Body, Time

_MAX_SECONDS = MAX_TIMEOUT_MS / 1000
_NAME = f"^{NAME.pattern}$"

Seconds = Annotated[float, Field(ge=0, le=_MAX_SECONDS)]
#: Checked with its rule by SagaDefinition.check; here for the OpenAPI document.
Name = Annotated[str, Field(json_schema_extra={"pattern": _NAME})]

#: A length of time, read by web.durations.
Length = Annotated[str, Field(max_length=30, json_schema_extra={"pattern": PATTERN})]

_RETRY = Retry()


class RetryRequest(Body):
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


class StepRequest(Body):
    service_name: Name = Field(
        description="A Kafka service, whose topic `<service_name>.commands` exists; with `action_endpoint` an HTTP one."
    )
    name: Name | None = Field(default=None, description="Unique in the saga; default `step-<n>`, n from 1.")
    command: Name | None = Field(default=None, description="Which handler of the service runs; default: the name.")
    payload: Any = Field(
        default_factory=dict,
        description="Any JSON; given to the action and to the compensation. An object "
        '`{"$from": "input.customer.id"}` or `{"$from": "steps.reserve.result.order_id", "default": null}` '
        "in it is replaced by that value.",
    )
    depends_on: list[Name] | None = Field(
        default=None,
        description="Steps that must have been executed; default: the one before it in the list.",
    )
    kind: Literal["compensatable", "pivot", "retriable"] = "compensatable"
    retry: RetryRequest | None = None
    timeout_seconds: Seconds = Field(default=Step("").timeout_seconds, description="Of one attempt.")
    action_endpoint: str | None = Field(
        default=None,
        description="Makes it a step of an HTTP service, found in the service registry by its `service_name`: the "
        "action is posted here. A path such as `/reserve`, or an absolute URL whose host is on the allow-list.",
    )
    compensation_endpoint: str | None = Field(
        default=None, description="Where the compensation is posted; with `action_endpoint` only."
    )


class SagaRequest(Body):
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

    name: Name = Field(description="Of the saga; without `steps` that of a registered definition.")
    steps: list[StepRequest] | None = Field(
        default=None,
        description="Run in this order unless `depends_on` says otherwise; default: the registered ones.",
    )
    version: Name | None = Field(
        default=None, description="Of the registered definition; default: the one registered last. Not with `steps`."
    )
    input: Any = Field(default=None, description="Any JSON; payloads refer to it. null: there is none.")
    saga_id: UUID | None = Field(default=None, description="Your own id for it; default: a new UUIDv7.")
    timeout_seconds: Seconds | None = Field(
        default=None, description="Of the whole saga; then it is undone. Default: the registered definition's."
    )


class DefinitionRequest(Body):
    """A saga that is registered under a name and a version, to be run with an input."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "description": "Bills what a customer has used.",
                    "input_required": ["meter"],
                    "steps": [
                        {
                            "name": "forecast",
                            "service_name": "forecasts",
                            "payload": {"meter": {"$from": "input.meter"}},
                        },
                        {
                            "name": "bill",
                            "service_name": "billing",
                            "action_endpoint": "/bills",
                            "compensation_endpoint": "/bills/cancel",
                            "payload": {"kwh": {"$from": "steps.forecast.result.kwh"}},
                        },
                    ],
                    "timeout_seconds": 300,
                }
            ]
        }
    )

    steps: list[StepRequest] = Field(description="As in `POST /sagas`.")
    timeout_seconds: Seconds | None = Field(default=None, description="Of the whole saga; then it is undone.")
    input_required: list[Annotated[str, Field(min_length=1, max_length=200)]] = Field(
        default_factory=list, max_length=100, description="Names that the input, an object, must have."
    )
    description: str | None = Field(default=None, max_length=2000, description="For people.")


class DefinitionView(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    version: str
    definition: DefinitionRequest = Field(description="The document, as it was registered.")
    created_at: datetime


class DefinitionRegistered(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    version: str
    registered: bool = Field(description="True: now; false: it was, the same.")
    created_at: datetime


class DefinitionSummary(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    version: str
    description: str | None
    steps: list[str] = Field(description="Their names.")
    created_at: datetime


class DefinitionPage(BaseModel):
    model_config = ConfigDict(extra="forbid")

    definitions: list[DefinitionSummary] = Field(description="The one registered last first.")
    next: str | None = Field(description="The next page's path and query; null = this was the last.")
    next_cursor: str | None = Field(description="The cursor in it.")


class PageQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    limit: int | None = Field(default=None, ge=1, description="Items on a page.")
    cursor: str | None = Field(default=None, max_length=200, description="`next_cursor` of the page before.")


#: No control characters: PostgreSQL takes a NUL for the end of everything, terminals take others for commands.
_Line = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]+$")]
_StepName = Annotated[str, Field(pattern=_NAME)]
_STEP_ALIASES = AliasChoices("step", "step_id")


class CancelRequest(Body):
    """An operator's request; who and why are kept in the journal."""

    who: _Line = Field(default="unknown", max_length=200, description="Who asks.")
    why: _Line | None = Field(default=None, max_length=1000, description="For whoever reads the journal.")


class RetryNowRequest(CancelRequest):
    step: _StepName | None = Field(
        default=None,
        validation_alias=_STEP_ALIASES,
        description="Only this step; default: all that wait. `step_id` is understood too.",
    )


class SkipRequest(CancelRequest):
    step: _StepName | None = Field(
        default=None,
        validation_alias=_STEP_ALIASES,
        description="The step whose action, or compensation, is taken for done; default: the only one under way. "
        "`step_id` is understood too.",
    )


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
    action_endpoint: str | None = Field(description="Of an HTTP service; null: a Kafka service.")
    compensation_endpoint: str | None
    timeout_seconds: float = Field(description="Of one attempt.")
    payload: Any = Field(description="As it was given: with its references.")
    state: StepState
    skipped: bool = Field(description="An operator took its action, or its compensation, for done.")
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
    version: str | None = Field(description="Of the registered definition that it runs.")
    input: Any
    state: SagaState
    steps: list[StepView]
    current_step_index: int = Field(
        description="The step it is at, always an index of `steps`. Forward: the first that is running "
        "or to be run; backward: the last that is being undone or to be undone; COMPLETED: the last; "
        "FAILED: the one that failed, or, where that was in doubt and undone as well, the one that began last. "
        "0 if its steps cannot be read (then `reason` says so)."
    )
    needs_attention: bool = Field(description="It cannot end without help, or has tried for very long.")
    parked: bool = Field(description="An input made the machine itself fail; an operator must look.")
    reason: str | None = Field(description="Why it was given up.")
    timeout_at: datetime | None
    created_at: datetime
    updated_at: datetime


class HistoryPage(BaseModel):
    model_config = ConfigDict(extra="forbid")

    saga_id: UUID
    entries: list[HistoryEntry] = Field(description="In the order of the log.")
    next: str | None = Field(description="The next page's path and query; null = there are no more yet.")
    next_cursor: str | None = Field(description="The cursor in it.")


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
    older_than: Length | None = Field(
        default=None, description="Started longer ago than this: `30s`, `5m`, `2h`, `7d`."
    )
    younger_than: Length | None = Field(default=None, description="Started since: as `older_than`.")
    needs_attention: bool | None = None
    limit: int | None = Field(default=None, ge=1, description="Sagas on a page.")
    cursor: str | None = Field(default=None, max_length=200, description="`next_cursor` of the page before.")
